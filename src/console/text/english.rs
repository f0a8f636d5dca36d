//! The console in English.

use super::library;
use super::{Actions, Common, Failures, Find, Help, Loan, SignIn, Texts, Why};

pub(super) const TEXTS: Texts = Texts {
    common: COMMON,
    sign_in: SIGN_IN,
    find: FIND,
    loan: LOAN,
    actions: ACTIONS,
    why: WHY,
    library: library::ENGLISH,
    help: HELP,
    failure: FAILURES,
};

const COMMON: Common = Common {
    skip: "Skip to the content",
    navigation: "Pages",
    first_page: "Go to the first page",
    find: "Find",
    why: "Why",
    help: "Help",
    sign_out: "Sign out",
    signed_in_as: "Signed in as",
    theme: "Theme",
    light: "Light",
    dark: "Dark",
    system: "As the system",
    language: "Language",
    times: "Times are Norwegian time (Europe/Oslo).",
    required: "required",
    optional: "optional",
};

const SIGN_IN: SignIn = SignIn {
    title: "Sign in",
    lead: "The console shows loans, and why a reader was refused. Each look and each action is \
           recorded with your name and your reason.",
    token: "Admin token",
    token_hint: "The token that [admin] token names in the gate's configuration.",
    name: "Your name",
    name_hint: "For the access trail: it tells people with the same token apart.",
    submit: "Sign in",
    wrong: "This is not the admin token.",
    signed_out: "You are signed out.",
    purpose_title: "Give a reason",
    purpose_lead: "Each look at a person's loans is recorded with your reason.",
    purpose: "Reason for looking",
    purpose_hint: "A case number or a few words. No names and no card numbers.",
    go_on: "Continue",
};

const FIND: Find = Find {
    title: "Find",
    lead: "Search for a borrower, a title, a loan or a request.",
    query: "Search for",
    query_hint: "A request id from an error message, a loan id, an ISBN, a pseudonym, Bokbasen's \
                 loan id with bokbasen: before it, or a borrower's own id together with the \
                 library.",
    library: "Library",
    library_hint: "An ISIL like NO-0301000. With a library, the text is a borrower's own id, \
                   unless it is a pseudonym. The id is never stored.",
    submit: "Search",
    nothing: "Nothing was found.",
    nothing_hint: "Check the id. A request is found at the gate that answered it, among its last \
                   requests, or in the ledger, if the gates store requests there.",
    borrower_needs_library: "If it is a borrower's own id, fill in the library too. If it is \
                             Bokbasen's loan id, write bokbasen: before it.",
    id_in_purpose: "The purpose has the borrower's own id in it, and the trail is stored. Take \
                    it out.",
    bad_library: "The library is not an ISIL. Write one like NO-0301000.",
    loans_of_borrower: "Loans of a borrower",
    loans_of_title: "Loans of a title",
    no_loans: "There are no loans.",
    no_loans_hint: "A refused request leaves a loan only if Bokbasen answered. Paste the request \
                    id of the error message to see why.",
    state: "State",
    title_column: "Title",
    begun: "Begun",
    due_or_ended: "Due or ended",
    borrower: "Borrower",
    loan: "Loan",
    open: "Open",
    older: "Older loans",
    newest: "Newest loans",
    due: "due",
    ended: "ended",
};

const LOAN: Loan = Loan {
    title: "Loan",
    facts: "Facts",
    id: "Loan id",
    bokbasen_id: "Bokbasen's loan id",
    reference: "Reference",
    pseudonym: "Borrower (pseudonym)",
    forgotten: "The borrower was erased",
    licence: "Licence",
    progress: "Read, as the app reports",
    no_progress: "The app has reported nothing.",
    due: "Due",
    ended: "Ended",
    end_reason: "Why it ended",
    overdue: "Bokbasen has not acknowledged the end for more than a day.",
    refused: "The loan was refused",
    code: "Code",
    retry_at: "Not before",
    bokbasen_says: "Bokbasen's own words",
    timeline: "Timeline",
    delivered: "Delivered",
    delivered_hint: "Each bar shows a file from its first byte to the last byte that was \
                     delivered. The newest seconds may be missing.",
    nothing_delivered: "No byte has been delivered.",
    ranges: |count, covered| match count {
        1 => format!("{covered} in one range"),
        _ => format!("{covered} in {count} ranges"),
    },
    sent: |bytes| format!("{bytes} sent, repetitions included"),
    files: "Files of the title",
    no_files: "The configuration has no file of this title.",
    all_of_borrower: "All loans of this borrower",
    all_of_title: "All loans of this title",
};

const ACTIONS: Actions = Actions {
    title: "Actions",
    none: "There is nothing to do with this loan.",
    reason: "Reason",
    reason_hint: "For the loan's history. At most 200 characters, no names.",
    end: "End the loan",
    end_hint: "Access stops at once, and running downloads are closed. Then Bokbasen gets the \
               return. It cannot be undone.",
    link: "Make a link",
    link_hint: "A signed link for this reader to this title, to test or to help. Whoever has it \
                can read.",
    hours: "Valid for (hours)",
    poll: "Query Bokbasen again",
    poll_hint: "Queries Bokbasen about this undecided loan now. Nothing new is registered.",
    ended: "The loan has ended here. Bokbasen's acknowledgement appears in the timeline.",
    polled: "Bokbasen is being queried. Reload the page in a while.",
    poll_elsewhere: "Another gate drives this loan, or it is decided. Reload the page.",
    pending: "Bokbasen has not decided, so the loan cannot end yet. Try again in a while.",
    reason_missing: "An action needs a reason: 1 to 200 characters without control characters.",
    no_link: "No link can be made: the configuration has no [readers.links] keys, the duration \
              is too long, or the borrower was erased.",
    mark: "Mark for balance",
    mark_hint: "The next balance of the library queries Bokbasen about this loan, at night or by \
                `loangate loans balance`. The timeline shows what it finds.",
    marked: "The loan is marked. The next balance examines it, and the timeline shows the result.",
    waits: "The loan is marked for the next balance.",
    minted: "The link",
    minted_hint: "It is shown only now.",
    valid_until: "Valid until",
    copy: "Copy",
    back: "Back to the loan",
};

const WHY: Why = Why {
    title: "Why",
    lead: "Follow a request through the gate: what each step decides, and why. Nothing is \
           changed, and nothing is sent to Bokbasen.",
    by_request: "A request that was made",
    request: "Request id",
    request_hint: "From X-Request-Id, or from instance in the reader's error message.",
    by_reader: "What a reader would get now",
    library_hint: "An ISIL like NO-0301000.",
    borrower: "The borrower's own id",
    borrower_hint: "It becomes a pseudonym at once and is never stored.",
    path: "Path of the file",
    path_hint: "It begins with a slash.",
    method: "Method",
    submit: "Explain",
    bad_request_id: "This is not the id of a request. Paste the UUID of the error message.",
    unknown_request: "This gate does not know the request. The gate that answered it stores it \
                      with its last requests, and the ledger only if that is configured. Describe \
                      it below instead.",
    bad_borrower: "The borrower's own id must have 1 to 256 bytes.",
    bad_path: "This is not the path of a request. Write one that begins with a slash.",
    loans_api: "This is a path of the readers' API of loans. Write the path of a file.",
    facts: "The request",
    was_sent: "The file was sent.",
    would_be_sent: "The file would be sent.",
    was_refused: "The request was refused.",
    would_be_refused: "The request would be refused.",
    assumes: "If Bokbasen accepts the loan.",
    begins: "It begins a loan.",
    steps: "Step by step",
    advice: "What to do",
    for_reader: "Reader and library",
    for_app: "App",
    for_operator: "Operator",
    another: "Explain another request",
    status: "Status",
    problem: "Problem",
    reason: "Reason",
    at: "Time",
    issued: "Credential issued",
};

const HELP: Help = Help {
    title: "Help",
    shortcuts: "Keyboard shortcuts",
    shortcuts_hint: "Single keys work outside of fields. They need a script; every page works \
                     with Tab and Enter as well.",
    key: "Key",
    does: "Does",
    search_field: "Go to the first field",
    turn_off: "Turn shortcuts off",
    turn_on: "Turn shortcuts on",
    are_off: "Shortcuts are turned off.",
    states: "States of a loan",
    privacy: "Privacy",
    privacy_text: "A borrower appears as a pseudonym. A borrower's own id that you type becomes \
                   one in memory; it is never stored, logged or part of an address. Each look at \
                   loans and each action is recorded: who, what, when and why.",
};

const FAILURES: Failures = Failures {
    not_found: ["Not found", "There is nothing at this address. It may have been removed."],
    forged: [
        "The form has expired",
        "The form does not belong to this session, or another site sent it. Open the page again.",
    ],
    signed_out: ["Signed out", "Your session is over. Sign in again; nothing was done."],
    not_allowed: ["Not allowed", "Your role does not allow this."],
    malformed: ["The form cannot be read", "Open the page again, and send the form once more."],
    unreadable_address: [
        "The address of the page cannot be read",
        "A part of it has a wrong value, or is there twice. Go on from the first page.",
    ],
    busy: ["Another file is written", "One file is written at a time. Try again in a while."],
    ledger: ["The ledger cannot be read", "The log of the gate says why. Try again in a while."],
    trail: [
        "The access cannot be recorded",
        "A look at loans that cannot be recorded is refused. Try again in a while.",
    ],
};
