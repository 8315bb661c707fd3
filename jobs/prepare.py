"""Raw files of a public data set -> the two tables that a config names.

python jobs/prepare.py --source movielens-1m --raw FOLDER --out FOLDER
"""

import sys

from llm4sbr_ray.data.sources.prepare import main

if __name__ == "__main__":
    sys.exit(main())
