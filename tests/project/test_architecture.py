"""docs/architecture.md says what is true, and answers where things are."""

from tests.support import architecture

PAGE = architecture.PAGE.read_text()


def test_the_rooms_are_those_of_the_package() -> None:
    assert architecture.with_table(PAGE) == PAGE, "run: python -m tests.support.architecture"


def test_eleven_questions_have_an_answer_that_exists() -> None:
    found = architecture.questions(PAGE)
    assert len(found) == 11
    for question, path, name in found:
        assert path.is_file(), question
        text = path.read_text()
        names = (f"def {name}(", f"class {name}:", f"{name}: ")
        assert not name or any(definition in text for definition in names), question
