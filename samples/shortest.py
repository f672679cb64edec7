"""The shortest program: a file of requests in, a file of answers out. Takes input and output as its arguments.

`simulate` sends to the embedded simulator; leave it out to use the key in the environment, or name a `base_url`.
"""

import sys

import batchkit

summary = batchkit.run(sys.argv[1], sys.argv[2], simulate=True)
print(summary["requests"])
