import pytest

from hardwon.stages.report import _stages


def test_what_is_kept_aside_is_no_stage(workspace, note):
    for name in "ab":
        workspace.run(note(name))
    with pytest.raises(RuntimeError, match="the lights went out"):
        workspace.run(note("a", fails=True))
    assert (workspace.root / ".a.before" / "note.txt").exists()
    assert [stage.name for stage in _stages(workspace)] == ["b"]
