import pytest


@pytest.fixture
def open_file(browser):
    """Opens a page from disk without a network; what it complains of or asks for is collected in ``.complaints``."""
    contexts = []

    def open_it(path, **options):
        context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(f"error: {error}"))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("request", lambda request: page.complaints.append(request.url[:100]))
        page.goto(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
