"""`python -m tests.readme.methods_table` writes the table of all methods into README.md."""

from pathlib import Path

from optax_zoo._core.paper import markdown_table

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"


def with_current_table(readme: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_current_table(README.read_text(encoding="utf-8")), encoding="utf-8")
