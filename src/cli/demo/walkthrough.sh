# The gate is at https://localhost:8443, Bokbasen's stand-in at http://127.0.0.1:9100, the storage at
# http://127.0.0.1:9000, the admin listener at http://127.0.0.1:9443. Paste these lines in a second terminal.

# 1. A book. The gate registers a loan (about a second), then streams: 200, and the same bytes as in the storage.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari https://localhost:8443/files/9788299999014/book.epub | sha256sum
curl -sS http://127.0.0.1:9000/9788299999014/book.epub | sha256sum

# 2. A player looks at the start of the audiobook, which begins the loan, and jumps into it: 206, with Content-Range.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 0-1 -o /dev/null -D - https://localhost:8443/files/9788299999038/audio.mp3
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 5000000-5000999 -o /dev/null -D - https://localhost:8443/files/9788299999038/audio.mp3

# 3. Past the end: 416, and Content-Range tells the size.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 99999999- -D - https://localhost:8443/files/9788299999038/audio.mp3

# 4. Nothing new since that day: 304.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -z "1 Nov 2026" -o /dev/null -D - https://localhost:8443/files/9788299999014/book.epub

# 5. Without a token: 401.
curl -sS --cacert demo/certs/ca.pem https://localhost:8443/files/9788299999014/book.epub

# 6. Ola has as many loans as his library allows: 403, BORROWER_LIMIT. Liv's library has spent its budget: 403, BUDGET_EXCEEDED.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/ola https://localhost:8443/files/9788299999014/book.epub
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/liv https://localhost:8443/files/9788299999014/book.epub

# 7. The only licence of this title goes to Kari (200), so that Per gets 403, NO_FREE_LICENSE.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -o /dev/null -w '%{http_code}\n' https://localhost:8443/files/9788299999021/book.epub
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/per https://localhost:8443/files/9788299999021/book.epub

# 8. No such title: 404. A cover needs no loan and no token: 200.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari https://localhost:8443/files/9780306406157/book.epub
curl -sS --cacert demo/certs/ca.pem -o /dev/null -w '%{http_code}\n' https://localhost:8443/covers/9788299999014.png

# 9. Bokbasen turns every new loan away: Per gets 503, and Kari, who has her loan, goes on reading: 200. The last line ends it.
curl -sS -X POST http://127.0.0.1:9100/sandbox/faults -d '{"call": "begin", "effect": {"status": {"status": 429, "retry_after": 5}}}'
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/per https://localhost:8443/files/9788299999038/audio.mp3
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -o /dev/null -w '%{http_code}\n' https://localhost:8443/files/9788299999014/book.epub
curl -sS -X DELETE http://127.0.0.1:9100/sandbox/faults

# 10. What the gate holds, and what Bokbasen's books say.
curl -sS -H @demo/admin.header http://127.0.0.1:9443/api/v1/loans
curl -sS http://127.0.0.1:9100/sandbox/books
