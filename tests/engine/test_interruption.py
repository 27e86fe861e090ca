import os
import signal

import pytest

from voco.engine.interruption import Interruption


def test_a_signal_is_noted_and_the_handlers_come_back(capfd):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as interruption:
        assert interruption.requested() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested() == signal.SIGTERM
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert "SIGTERM: finishing this step" in capfd.readouterr().err


def test_a_second_ctrl_c_stops_at_once(capfd):
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert "SIGINT" in capfd.readouterr().err
