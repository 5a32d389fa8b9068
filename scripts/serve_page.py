"""Drive the page of `ngen3 serve` in a headless Chromium: chat, stop, edit, two models, the notebook, and the runs.

    ngen3 serve --model_checkpoint chat.pt --model_checkpoint chat2.pt --model_checkpoint base.pt --runs .
    python scripts/serve_page.py http://127.0.0.1:8000 --chat chat --other chat2 --base base --shots shots [--axe axe.min.js]

The answers of `chat` must be long enough to be stopped. Writes screenshots, light and dark, wide and 390 px, to --shots. With --axe,
the accessibility checks of axe-core (npm install axe-core) run on every view. Prints one line per check and exits with code 1 if any failed.
Needs: pip install playwright, and chromium on the path
"""
import argparse, pathlib, shutil, sys

from playwright.sync_api import sync_playwright, expect

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--chat", required=True)
parser.add_argument("--other", required=True)
parser.add_argument("--base", required=True)
parser.add_argument("--live", help="name of a run that is training")
parser.add_argument("--shots", type=pathlib.Path, required=True)
parser.add_argument("--axe", type=pathlib.Path)
args = parser.parse_args()
args.shots.mkdir(parents=True, exist_ok=True)
failed = False
browser_path = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def report(what, good, detail=""):
    global failed
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {detail}", flush=True)


def look(page, name):
    """Takes a screenshot and runs axe-core."""
    page.screenshot(path=args.shots / f"{name}.png")
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    report(f"{name}: fits the window", not wide)
    if args.axe:
        # The page's policy keeps others' scripts out, but not those of the driver.
        page.evaluate(args.axe.read_text())
        found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']}).then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 120)).slice(0, 3)]))")
        serious = [finding for finding in found if finding[0] in ("serious", "critical")]
        report(f"{name}: axe", not serious, found or "nothing found")


def ready(page):
    page.goto(args.url)
    page.wait_for_selector("#model option", state="attached")


def send(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def idle(page):
    expect(page.locator("#send")).to_be_visible(timeout=60_000)


with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    ready(page)
    page.get_by_label("Model", exact=True).select_option(args.chat)
    look(page, "empty")

    # Chat.
    page.locator("#slider-max_tokens").fill("40")
    page.get_by_label("Seed").fill("3")
    send(page, "Hello, how are you?")
    idle(page)
    answer = page.locator(".turn:not(.user) .text").last
    first = answer.inner_text()
    report("an answer streams", bool(first.strip()), repr(first[:80]))
    report("it has tokens", page.locator(".token").count() > 3, page.locator(".token").count())
    page.locator(".token").nth(2).hover()
    expect(page.locator("#odds")).to_be_visible()
    report("probabilities on hover", "%" in page.locator("#odds").inner_text(), repr(page.locator("#odds").inner_text()[:80]))
    look(page, "chat-odds")
    answer.focus()
    page.keyboard.press("ArrowRight")
    report("probabilities by key", "%" in page.locator("#announce").inner_text(), page.locator("#announce").inner_text())
    page.get_by_role("button", name="Regenerate").click()
    idle(page)
    report("regenerated with the same seed", page.locator(".turn:not(.user) .text").last.inner_text() == first)
    page.get_by_role("button", name="Edit message 1").click()
    page.locator(".turn.user textarea").fill("And now?")
    page.keyboard.press("Enter")
    idle(page)
    report("edited", page.locator(".turn").count() == 2 and "And now?" in page.locator(".turn.user").inner_text())
    page.get_by_label("Seed").fill("")

    # Stop.
    page.locator("#slider-max_tokens").evaluate("slider => { slider.value = slider.max; slider.dispatchEvent(new Event('input')); }")
    send(page, "Tell me a long story.")
    expect(page.locator("#stop")).to_be_visible()
    page.wait_for_timeout(150)
    page.get_by_role("button", name="Stop").click()
    idle(page)
    report("stopped", True, page.locator(".turn:not(.user) .under").last.inner_text())
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    report("conversations are kept", page.locator(".turn.user").count() == 2)
    page.locator("#slider-max_tokens").fill("40")

    # Two models.
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Compare with").select_option(args.other)
    page.get_by_label("Shade unlikely tokens").check()
    send(page, "Hello!")
    idle(page)
    report("two models side by side", page.locator(".answers .turn").count() == 2)
    look(page, "two-models")
    page.emulate_media(color_scheme="dark")
    look(page, "two-models-dark")
    page.emulate_media(color_scheme="light")
    page.get_by_label("Compare with").select_option("")

    # Notebook.
    page.get_by_label("Model", exact=True).select_option(args.base)
    page.get_by_label("Text for " + args.base).fill("ROMEO:\nWhat")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#continue")).to_be_visible(timeout=60_000)
    text = page.locator(".sheet .text").inner_text()
    report("the notebook continues", text.startswith("ROMEO:\nWhat") and len(text) > 20, repr(text[:80]))
    look(page, "notebook")
    page.get_by_role("button", name="Undo").click()
    report("undone", page.get_by_label("Text for " + args.base).input_value() == "ROMEO:\nWhat")

    # Runs.
    page.get_by_role("tab").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("figure svg path")
    report("runs", page.locator("#run-items input").count() > 0, page.locator("#run-items").inner_text().replace("\n", " ")[:160])
    if args.live:
        item = page.locator("#run-items label", has_text=args.live)
        before = after = item.inner_text()
        # The run has one thread and shares the machine with all this.
        for _ in range(60):
            page.wait_for_timeout(1000)
            after = item.inner_text()
            if after != before:
                break
        report("a run that goes on", "training" in after and before != after, f"{before!r} → {after!r}")
    boxes = page.locator("#run-items input")
    for index in range(boxes.count()):
        boxes.nth(index).check()
    page.wait_for_timeout(2500)
    report("curves", page.locator("figure").count() >= 3, page.locator("figcaption").all_inner_texts())
    if args.live:
        sample = page.locator(f"#samples section[aria-label^='Samples of {args.live}'] details[open] p")
        sample.wait_for(timeout=120_000)
        report("samples", len(sample.inner_text()) > 20, repr(sample.inner_text()[:60]))
    page.locator("figure svg").first.hover()
    look(page, "runs")
    page.emulate_media(color_scheme="dark")
    look(page, "runs-dark")
    if args.live:
        page.locator("#samples").scroll_into_view_if_needed()
        look(page, "samples-dark")

    # A telephone.
    for scheme in ["light", "dark"]:
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        ready(phone)
        if not phone.locator("#chat").is_visible():
            phone.get_by_role("button", name="Settings").click()
            phone.get_by_label("Model", exact=True).select_option(args.chat)
            phone.keyboard.press("Escape")
        phone.locator("#slider-max_tokens").evaluate("slider => { slider.value = 40; slider.dispatchEvent(new Event('input')); }")
        send(phone, "Hello from a telephone!")
        idle(phone)
        look(phone, f"phone-chat-{scheme}")
        phone.get_by_role("button", name="Settings").click()
        look(phone, f"phone-settings-{scheme}")
        phone.keyboard.press("Escape")
        phone.get_by_role("tab", name="Runs").click()
        phone.wait_for_selector("figure svg path")
        look(phone, f"phone-runs-{scheme}")
        phone.close()
    report("no errors in the console", not problems, problems)
    browser.close()
sys.exit(failed)
