# See it in a browser: https://localhost:8443/demo/
# The browser warns of a certificate that it does not know, because the demo made its own. Choose
# "Advanced", then "Proceed to localhost". With --open, the demo opens Chromium without the warning.
# The console for support staff: http://127.0.0.1:9443/ (sign in with the token in demo/certs/admin.token)

# The gate is at https://localhost:8443, the admin listener at http://127.0.0.1:9443,
# Bokbasen's stand-in at http://127.0.0.1:9100, and the storage at http://127.0.0.1:9000.
# Paste these lines into a second terminal.

# 1. Download a book. The gate registers a loan (about a second), then streams: 200, the same bytes as in the storage.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari https://localhost:8443/files/9788299999014/book.epub | sha256sum
curl -sS http://127.0.0.1:9000/9788299999014/book.epub | sha256sum

# 2. Play an audiobook. A request for its first bytes begins the loan; then the player seeks: 206, with Content-Range.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 0-1 -o /dev/null -D - https://localhost:8443/files/9788299999038/audio.mp3
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 5000000-5000999 -o /dev/null -D - https://localhost:8443/files/9788299999038/audio.mp3

# 3. Request a range past the end: 416, and Content-Range has the size.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -r 99999999- -D - https://localhost:8443/files/9788299999038/audio.mp3

# 4. Request a book only if it has changed since 1 November: 304.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -z "1 Nov 2026" -o /dev/null -D - https://localhost:8443/files/9788299999014/book.epub

# 5. Request a book without a token: 401.
curl -sS --cacert demo/certs/ca.pem https://localhost:8443/files/9788299999014/book.epub

# 6. Ola already has as many loans as his library allows: 403, BORROWER_LIMIT. Liv's library has spent its budget: 403, BUDGET_EXCEEDED.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/ola https://localhost:8443/files/9788299999014/book.epub
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/liv https://localhost:8443/files/9788299999014/book.epub

# 7. Kari takes the only licence of this title (200), so Per gets 403, NO_FREE_LICENSE.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -o /dev/null -w '%{http_code}\n' https://localhost:8443/files/9788299999021/book.epub
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/per https://localhost:8443/files/9788299999021/book.epub

# 8. Request an unknown title: 404. Request a cover, which needs no loan and no token: 200.
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari https://localhost:8443/files/9780306406157/book.epub
curl -sS --cacert demo/certs/ca.pem -o /dev/null -w '%{http_code}\n' https://localhost:8443/covers/9788299999014.png

# 9. Bokbasen rejects every new loan. Per gets 503. Kari, who has a loan, reads on: 200. The last line ends the fault.
curl -sS -X POST http://127.0.0.1:9100/sandbox/faults -d '{"call": "begin", "effect": {"status": {"status": 429, "retry_after": 5}}}'
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/per https://localhost:8443/files/9788299999038/audio.mp3
curl -sS --cacert demo/certs/ca.pem -H @demo/readers/kari -o /dev/null -w '%{http_code}\n' https://localhost:8443/files/9788299999014/book.epub
curl -sS -X DELETE http://127.0.0.1:9100/sandbox/faults

# 10. List the loans of the gate, and the loans in Bokbasen's books.
curl -sS -H @demo/admin.header http://127.0.0.1:9443/api/v1/loans
curl -sS http://127.0.0.1:9100/sandbox/books
