"""The chat page in a headless Chromium: two answers side by side, by keyboard, on a phone, light and dark."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import DESKTOP, FIT, PHONE, opened
from playwright.sync_api import expect

QUESTION = "Greet guest 7."


def ask(page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone", "desktop"])
def test_base_and_tuned_answer_side_by_side(browser, server, client, size, scheme):
    expected = [
        client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=256
        )
        .choices[0]
        .message.content
        for name in ("tiny-llama", "tiny")
    ]
    with opened(browser, server.url, size, scheme) as page:
        expect(page.get_by_label("First model")).to_have_value("tiny-llama")
        expect(page.get_by_label("Second model")).to_have_value("tiny")
        assert page.evaluate("document.activeElement.id") == "text"
        ask(page, QUESTION)
        notes = page.locator(".answer .note")
        for i in range(2):
            expect(notes.nth(i)).to_contain_text("tokens in", timeout=60_000)
        answers = page.locator(".answer p:not(.note)")
        assert [answers.nth(i).evaluate("(part) => part.textContent") for i in range(2)] == expected
        boxes = [page.locator(".answer").nth(i).bounding_box() for i in range(2)]
        assert (boxes[0]["y"] == boxes[1]["y"]) == (size == DESKTOP)  # below each other on a phone
        assert page.evaluate(FIT)
        for colours in ("light", "dark"):
            page.emulate_media(color_scheme=colours)
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
        expect(page.get_by_role("status")).to_have_text("Both models have answered.")


def test_a_conversation_goes_on_and_begins_anew(browser, server):
    with opened(browser, server.url) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
        page.get_by_label("Most tokens").fill("3")
        for turns, text in enumerate(("one", "two <img src=x onerror=alert(1)>"), start=1):
            ask(page, text)
            expect(page.locator(".turn")).to_have_count(turns)
            expect(page.locator(".busy")).to_have_count(0, timeout=60_000)
        assert [[message["role"] for message in body["messages"]] for body in asked[2:]] == [
            ["user", "assistant", "user"]
        ] * 2
        assert page.locator("img").count() == 0 and page.locator(".turn").count() == 2
        expect(page.locator(".note").first).to_contain_text("cut at the most tokens")
        page.get_by_role("button", name="New conversation").click()
        ask(page, "three")
        expect(page.locator(".turn")).to_have_count(1)
        expect(page.locator(".busy")).to_have_count(0)
        assert len(asked[-1]["messages"]) == 1


def test_a_key_is_asked_for_and_errors_are_shown(browser, two_runs, start):
    running = start({"tiny": two_runs["tiny"]}, api_key="secret")
    with running as server, opened(browser, server.url, expected="status of 400") as page:
        expect(page.locator("#empty")).to_have_text("Give the API key first.")
        page.get_by_label("API key").fill("secret")
        page.get_by_label("API key").press("Tab")
        expect(page.get_by_label("First model")).to_have_value("tiny-llama")
        ask(page, "x" * 5000)
        expect(page.locator(".answer.failed")).to_have_count(2, timeout=60_000)
        assert "context" in page.locator(".answer.failed p").first.inner_text()
