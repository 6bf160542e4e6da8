"""docs/architecture.md says what is true, and answers where things are."""

from tests.support import architecture

PAGE = architecture.PAGE.read_text()


def test_each_question_has_an_answer_that_exists() -> None:
    found = architecture.questions(PAGE)
    assert len(found) == 12
    for question, path, name in found:
        assert path.is_file(), question
        text = path.read_text()
        names = (f"def {name}(", f"class {name}:", f"{name}: ")
        assert not name or any(definition in text for definition in names), question
