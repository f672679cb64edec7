"""A provider on loopback: for demos, for tests, and for rehearsing a job before it costs money.

    settings.py   what it is to behave like
    behaviour.py  what is answered to a body, how late and with which fault: a function of seed and body, nothing else
    limits.py     rate limits; told the time, they answer whether and when
    wire.py       OpenAI's spelling: requests, completions, errors, headers
    server.py     `Simulator`, the server, inside the running event loop
    process.py    `EmbeddedSimulator`, the same in a process of its own

Nothing is imported here, so that naming the settings does not load a server.
"""
