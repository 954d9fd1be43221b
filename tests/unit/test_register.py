"""The import watcher alone; what it is for is tested in fresh processes by integration/test_registration.py."""

import sys

import pytest

import qwen_vl
from qwen_vl._register import _ImportWatcher


def test_finders_without_find_spec_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [object(), *sys.meta_path])
    spec = _ImportWatcher().find_spec("qwen_vl.errors", qwen_vl.__path__)
    assert spec is not None and spec.origin == f"{qwen_vl.__path__[0]}/errors.py"
