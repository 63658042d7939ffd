"""Each adapter against its real host, in a process of the host's own."""


def test_modelopt(inside):
    assert inside("modelopt") >= 15


def test_fastvideo(inside):
    assert inside("fastvideo") >= 15
