// A client of loangate for browsers and Node: downloads a file and returns its loan.
//
// In a page, import `Client`. `[cors] origins` of the gate must list the page's origin.
// With Node 18 or later it is also a command:
//
//   export LOANGATE_URL=https://localhost:8443 LOANGATE_TOKEN=…
//   node client.mjs download /files/9788299999014/book.epub book.epub
//   node client.mjs return 9788299999014
//
// Node reads the CA of the gate's certificate from the file NODE_EXTRA_CA_CERTS, if that CA is not
// a public one.

const MAX_FAILURES = 8; // failures in a row before the client gives up
const TEMPORARY = [429, 502, 503, 504];

// A refusal by the gate: a problem document (RFC 9457).
export class Problem extends Error {
    constructor(response, document) {
        super(`${response.status} ${document.type} ${document.reason ?? ""}: ${document.detail}`);
        this.status = response.status;
        this.type = document.type; // a stable slug, for programs
        this.detail = document.detail; // a sentence, for people
        this.reason = document.reason;
        this.requestId = response.headers.get("X-Request-Id"); // for support
        this.retryAfter = Number(response.headers.get("Retry-After")) || 2; // seconds
    }
}

// Sends requests of one reader.
export class Client {
    constructor(url, token) {
        this.url = url;
        this.token = token;
    }

    // Sends one request. Resolves to a successful response, or throws a Problem.
    async send(method, path, headers = {}) {
        const response = await fetch(this.url + path, {
            method,
            headers: { Authorization: `Bearer ${this.token}`, ...headers },
            cache: "no-store", // a browser's cache must not keep a borrowed file
        });
        if (response.ok) return response;
        // A proxy between the gate and this client may answer without a problem document.
        throw new Problem(response, await response.json().catch(() => ({})));
    }

    // Downloads a file and resolves to a Blob. Resumes where the connection breaks off.
    async download(path) {
        let chunks = [];
        let size = 0;
        let etag = null;
        const attempt = async () => {
            // A request from the start may begin a loan. A request that continues never does.
            const resumes = size > 0 && etag;
            const headers = resumes ? { Range: `bytes=${size}-`, "If-Range": etag } : {};
            const response = await this.send("GET", path, headers);
            if (response.status === 200) [chunks, size] = [[], 0]; // the whole file
            // A weak ETag cannot prove that the rest belongs to the same file.
            etag = response.headers.get("ETag")?.match(/^".*/)?.[0];
            const length = response.headers.get("Content-Length");
            const end = length && size + Number(length);
            const reader = response.body.getReader();
            for (let read = await reader.read(); !read.done; read = await reader.read()) {
                chunks.push(read.value);
                size += read.value.length;
            }
            if (end && size !== end) throw new TypeError("the body is short");
            return new Blob(chunks, { type: response.headers.get("Content-Type") });
        };
        return repeat(attempt, () => size);
    }

    // Ends the reader's loan of a title. Succeeds also if there is none.
    async returnLoan(isbn) {
        await repeat(() => this.send("DELETE", `/loans/${isbn}`));
    }
}

// Repeats an attempt until it succeeds, fails for good, or makes no progress.
async function repeat(attempt, progress = () => 0) {
    let failures = 0;
    for (;;) {
        const before = progress();
        try {
            return await attempt();
        } catch (error) {
            // fetch throws a TypeError when the connection breaks.
            const temporary = error instanceof TypeError || TEMPORARY.includes(error.status);
            failures = progress() > before ? 0 : failures + 1;
            if (!temporary || failures > MAX_FAILURES) throw error;
            await new Promise(resume => setTimeout(resume, 1000 * (error.retryAfter ?? 1)));
        }
    }
}

// The command for Node.
if (globalThis.process?.argv[1]?.endsWith("client.mjs")) {
    const { LOANGATE_URL, LOANGATE_TOKEN } = process.env;
    const [command, subject, file] = process.argv.slice(2);
    const client = new Client(LOANGATE_URL, LOANGATE_TOKEN);
    try {
        if (command === "download") {
            const blob = await client.download(subject);
            const { writeFile } = await import("node:fs/promises");
            await writeFile(file, Buffer.from(await blob.arrayBuffer()));
        } else {
            await client.returnLoan(subject);
        }
    } catch (error) {
        console.error(`failed: ${error.message}`);
        process.exitCode = 1;
    }
}
