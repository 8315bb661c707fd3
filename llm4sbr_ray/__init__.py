import os

# Ray Data shares a cluster's CPUs among the data sets that run on it. A killed driver's share would stay reserved for
# three minutes, and the one that goes on in its place could answer but not write. Living ones ask again every ten
# seconds. Ray reads this when ray.data is imported.
os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
