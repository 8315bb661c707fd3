"""The page at `/`, in a browser, on the running service.

It takes a Chromium: one on the PATH (Debian: apt-get install chromium), or that of `playwright install chromium`.
PLAYGROUND_SHOTS=FOLDER keeps pictures, for eyes.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from ray import serve
from serving_run import EVIL_TITLE, planted_run, samples_table

from llm4sbr_ray.serving.app import ServeArgs, build_app
from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.ingress import API_KEY, Ingress

pytestmark = pytest.mark.integration
ON_PATH = ("chromium", "chromium-browser", "google-chrome")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
KEY = "the-key-of-this-test"


@pytest.fixture(scope="module")
def url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(ServeArgs(bundle=run.uri("bundle"), graph="fused")), name="open", route_prefix="/")
    options = {"num_cpus": 0.1, "runtime_env": {"env_vars": {API_KEY: KEY}}}
    place = run.uri("bundle"), Bundle(run.uri("bundle")).manifest.version
    locked = serve.deployment(ray_actor_options=options)(Ingress).bind(*place, alone=(100, 3, "exact"))
    serve.run(locked, name="locked", route_prefix="/locked")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, ON_PATH)), own if Path(own).exists() else None)
        if found is None:
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window in which no script may fail."""
    with browser.new_context(viewport=DESK) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
        assert failures == []


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("PLAYGROUND_SHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def add(page: Page, title: str) -> None:
    """Search for an item and click it, as a person does; wait for the answer."""
    page.get_by_label("Catalogue").fill(title)
    with page.expect_response(re.compile("/recommend$")):
        page.locator("#found").get_by_role("button", name=f"Add {title}", exact=True).click()


def titles(page: Page, column: str) -> list[str]:
    name = "strong" if column == "recommended" else "span:nth-child(2)"
    return page.locator(f"#{column} > li {name}").all_inner_texts()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_a_session_is_clicked_together_and_explained(page: Page, url: str) -> None:
    page.goto(url)
    recommended = page.locator("#recommended > li")
    expect(recommended).to_have_count(10)
    expect(recommended.first).to_contain_text("Popular with all visitors")
    expect(page.locator("#note")).to_contain_text("session is empty")
    expect(page.locator("#wanted")).to_be_hidden()
    popular = titles(page, "recommended")
    shot(page, "empty")

    page.get_by_label("Catalogue").fill("number 12")
    expect(page.locator("#found li")).to_have_text(["Soap number 12"])
    page.get_by_label("Catalogue").fill("no such thing")
    expect(page.locator("#found")).to_have_text("Nothing found.")

    add(page, "Soap number 12")
    expect(page.locator("#session li")).to_have_text([re.compile("Soap number 12")])
    expect(recommended.first).to_contain_text(re.compile(r"(Mostly|Partly) because of .+ \(\d+%\)"))
    one_click = titles(page, "recommended")
    assert one_click != popular
    assert "Soap number 12" not in one_click
    expect(page.locator("#facts")).to_have_text(re.compile(r"srgnn\+llm4sbr · [\d.]+ ms in the service, \d+ ms with"))

    add(page, "Soap number 30")
    expect(page.locator("#recommended strong")).not_to_have_text(one_click)  # as soon as the answer is there
    wishes = page.locator("#wishes .part")
    expect(wishes).to_have_count(2)
    expect(wishes.first).to_contain_text("Long-term taste")
    expect(wishes.last).to_contain_text("Current need")
    expect(wishes.last.locator("li").first).to_contain_text("%")
    expect(page.locator("#origin")).to_contain_text("No LLM has read this session")
    shot(page, "two-clicks")

    page.get_by_role("button", name="Remove Soap number 30").click()
    expect(page.locator("#recommended strong")).to_have_text(one_click)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#recommended strong")).to_have_text(popular)


def test_beside_it_what_the_clicks_alone_recommend(page: Page, url: str) -> None:
    page.goto(url)
    add(page, "Soap number 12")
    expect(page.locator("#alone li")).to_have_count(10)
    fused, alone = titles(page, "recommended"), titles(page, "alone")
    assert fused != alone
    for place, (title, card) in enumerate(zip(fused, page.locator("#recommended > li").all(), strict=True)):
        before = alone.index(title) if title in alone else None
        said = "new" if before is None else f"{'▲▼'[before < place]} {abs(before - place)}"
        expect(card.locator(".tag")).to_have_text("same" if before == place else said)
    for title, row in zip(alone, page.locator("#alone li").all(), strict=True):
        expect(row.locator(".tag")).to_have_count(int(title not in fused))
    page.get_by_label("Show what the clicks alone").uncheck()
    expect(page.locator("#alone li")).to_have_count(0)
    expect(page.locator("#recommended .tag")).to_have_count(0)


def test_a_session_that_the_llm_has_read(page: Page, url: str) -> None:
    rows = samples_table(3, 60).to_pylist()
    named = [row["items"] for row in rows if all(row["grounded"]) and not {3, 4} & set(row["items"])]
    page.goto(url)
    for item in min(named, key=len):
        add(page, f"Soap number {item}")
    expect(page.locator("#origin")).to_contain_text("Read by the LLM")
    expect(page.locator("#wishes .tag")).to_have_text(["the LLM's answer"] * 2)


def test_a_title_is_text_and_nothing_else(page: Page, url: str) -> None:
    page.goto(url)
    add(page, EVIL_TITLE)
    expect(page.locator("#session li")).to_contain_text(EVIL_TITLE)
    assert page.title() == "Playground - llm4sbr_ray"


def test_a_telephone(page: Page, url: str) -> None:
    page.set_viewport_size(PHONE)
    page.goto(url)
    assert fits(page)
    for title in ("Soap number 12", EVIL_TITLE, "Soap number 30"):
        add(page, title)
    page.locator("summary").first.click()
    expect(page.locator("details[open] li").first).to_contain_text("speaks")
    assert fits(page)
    shot(page, "phone")


def test_a_service_with_a_key_asks_for_it(page: Page, url: str) -> None:
    page.goto(f"{url}/locked/")
    secret = page.get_by_label("This service asks for a key")
    expect(secret).to_be_visible()
    expect(page.locator("#note")).to_contain_text("the service asks for its key")
    secret.fill("wrong")
    secret.press("Enter")
    expect(secret).to_be_visible()
    secret.fill(KEY)
    secret.press("Enter")
    expect(page.locator("#recommended > li")).to_have_count(10)
    expect(page.locator("#found button").first).to_be_visible()
    expect(secret).to_be_hidden()
    page.reload()
    expect(page.locator("#recommended > li")).to_have_count(10)
    expect(secret).to_be_hidden()


def test_the_keyboard_alone_is_enough(page: Page, url: str) -> None:
    page.goto(url)
    search = page.get_by_label("Catalogue")
    search.fill("number 12")
    expect(page.locator("#found li")).to_have_text(["Soap number 12"])
    page.keyboard.press("Tab")
    for clicks in (1, 2):
        with page.expect_response(re.compile("/recommend$")):
            page.keyboard.press("Enter")
        expect(page.locator("#session li")).to_have_count(clicks)
    page.get_by_role("button", name="Add ").nth(1).focus()  # of the first recommendation
    with page.expect_response(re.compile("/recommend$")):
        page.keyboard.press("Enter")
    expect(page.locator("#session li")).to_have_count(3)
    expect(page.locator("#recommended button").first).to_be_focused()  # another item now stands there
    page.locator("#session button").first.focus()
    for clicks in (2, 1):
        page.keyboard.press("Enter")
        expect(page.locator("#session li")).to_have_count(clicks)
    expect(page.locator("#session button")).to_be_focused()


def test_in_the_dark(page: Page, url: str) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(url)
    add(page, "Soap number 12")
    shown = "getComputedStyle(document.body)"
    assert page.evaluate(f"{shown}.backgroundColor") == "rgb(18, 22, 28)"
    assert page.evaluate(f"{shown}.color") == "rgb(230, 234, 240)"
    assert fits(page)
    shot(page, "dark-phone")
