"""Drive the Autobahn test suite's client cases against WebSocket clients.

    python -m tests.conformance                          # groups 1-7, 9, 10
    python -m tests.conformance --cases 1-10,spread      # and some of 12 and 13: what CI runs
    python -m tests.conformance --cases all              # 517 cases, 20 minutes
    python -m tests.conformance --cases '12.1.*' 5.3
    python -m tests.conformance --client websockets --report websockets.json
    python -m tests.conformance.table a.json b.json      # reports, side by side
    python -m tests.conformance.table --page [a.json b.json ...]

The last puts their summaries into ``results`` and the table into the docs' page on conformance.

The suite's server (``wstest -m fuzzingserver``) runs under CPython 2.7 only. One
is looked for in ``WSTHREAD_PYTHON27``, on ``PATH`` and in pyenv's versions;
the suite is then installed once, in a virtualenv of its own in the user's cache
directory. Where there is no CPython 2.7 the run says so and is skipped (exit
status 0; with ``--strict``, 1).

The verdict is strict: a case passes if the suite calls its behaviour *and* its
closing behaviour ``OK``. Three cases (7.1.6, 7.13.1, 7.13.2) are informational:
the suite has no right answer for them. Everything else is a failure, and so is
a case without a result. Exit status 1 on any failure.

Files: ``install`` finds Python 2.7 and installs the suite, ``server`` is its
running server, ``clients`` are the clients under test, ``run`` brings cases to
clients, ``judge`` selects, judges and prints, ``table`` compares reports.
"""
