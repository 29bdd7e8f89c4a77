"""Names of what links lead to."""

from pathlib import Path

import pytest

from myllm.apps.alt_links import Destinations
from myllm.apps.alt_pages import PageFile, read_page


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "about.html").write_text("<title>\n About  us &amp; you</title><h1>No</h1>")
    (tmp_path / "heading.md").write_text("text\n\n# Our *team*\n")
    (tmp_path / "front.md").write_text("---\ntitle: \"In front\"\n---\n# No\n")
    (tmp_path / "layout.html").write_text("<title>{{ page.title }}</title><h1>{{ page.title }}</h1>")
    (tmp_path / "untitled.html").write_text("<p>text")
    (tmp_path / "news").mkdir()
    (tmp_path / "news/index.html").write_text("<title>News</title>")
    (tmp_path / "broken.html").write_bytes(b"<title>\xe9</title>")
    return tmp_path


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("href=about.html", "About us & you"), ("href=/about.html#team", "About us & you"),
        ("href=heading.md", "Our team"), ("href=news/", "News"), ("href=/news", "News"),
        ("href=front.md", "In front"), ("href=layout.html", "Layout"),
        ("href=untitled.html", "Untitled"), ("href=broken.html", "Broken"),
        ("href=about.html title='the team'", "The team"),
        ("href=about.html title=x aria-label='Who we are'", "Who we are"),
        ("href=https://example.org/2021/03/red_shoes-forSale.php?id=7", "Red shoes for Sale (example.org)"),
        ("href=https://www.facebook.com/our-name/", "Our name (facebook.com)"),
        ("href=//example.org/to-do.pdf", "To do (PDF, example.org)"), ("href=mp3/top40-2021.html", "Top 40 2021"),
        ("href=https://youtu.be/dQw4w9WgXcQ", "Youtu.be"), ("href=files/f47ac10b-58cc-4372-a567-0e02b2c3d479", ""),
        ("href=https://www.example.org", "Example.org"), ("href=https://example.org/p/12345678", "Example.org"),
        ("href=files/report-2020.pdf", "Report 2020 (PDF)"), ("href=caf%C3%A9/index.php", "Café"),
        ("href=#opening-hours", "Opening hours"), ("href=mailto:a@example.org", "Email a@example.org"),
        ("href=tel:+49123", "Call +49123"), ("href=big/dog.jpg", "Full-size picture"),
        ("href='{{ post.url }}'", ""), ("href=\"{% url 'home' %}\"", ""), ("href='<%= root_path %>'", ""),
        ("href={x}", ""),
        ("href=about.html title='{{ title }}'", ""), ("href=about.html aria-label='{{ title }}'", ""),
        ("href=# :href=x", ""), ("v-bind:href=x", ""), ("[routerLink]=x", ""), ("th:href=x", ""), ("v-bind=x", ""),
        ("role=link", ""), ("href=about.html data-href=x hreflang=de", "About us & you"),
        ("href=#", ""), ("href=''", ""), ("href=javascript:open()", ""), ("href=http://[", ""), ("href=%00", ""),
    ],
)
def test_destination_is_named_by_label_title_page_or_address(site: Path, link: str, expected: str) -> None:
    (site / "page.html").write_text(f"<a {link}><img src=a.jpg></a>")
    page = read_page(PageFile(site / "page.html", site))
    [picture] = page.tree.pictures
    assert picture.element.parent is not None
    name, origin = Destinations().name(picture.element.parent, page)
    assert name == expected and bool(origin) == bool(expected)
