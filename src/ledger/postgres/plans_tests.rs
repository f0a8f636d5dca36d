//! Tests of the plans of all statements on tables that are partitioned by library as in
//! a distributed engine.
//!
//! A hot statement, of a reader's request or of one loan, reads one partition by an index. No other
//! statement scans a table of loans. This holds for plans made for the arguments, and for plans
//! made for all.

use std::collections::HashSet;
use std::fmt::Write;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::migrations::{LOANS_TO_EXAMINE, LOANS_TO_REPORT};
use super::queries_tests::SCHEMA;
use super::test_support::support::Postgres;
use super::{
    accesses, anchors, barrier, chain, chain_seals, chain_walk, check, closed, delivered, details,
    doubts, ended_chains, examinations, head_records, last_steps, listing, loans, other_chains,
    own_chains, prunable, prune, queries, recorded_heads, reports, retention, usage, whole_ledger,
    worklist,
};
use crate::ledger::brake::{Count, Counted};
use crate::ledger::{Filter, Prunable, ReportFilter};
use crate::loan::{Borrower, LoanState};

/// The tables that are divided by library, and that are large.
const LARGE: [&str; 7] =
    ["loans", "chains", "history", "anchors", "delivered", "doubts", "reports"];
const PARTITIONS: usize = 4;
/// Loans, and the libraries that have them.
const LOANS: u32 = 100_000;
const LIBRARIES: u32 = 200;

/// Returns the schema with the tables of a library partitioned: the tables, and their indexes.
/// Rows are not logged, which the test does not need and which would take most of its disk space.
fn partitioned_schema() -> (String, String) {
    let (mut sql, mut indexes) = (String::new(), String::new());
    for statement in SCHEMA.split(";\n") {
        let Some((_, name)) = statement.split_once("CREATE TABLE ") else {
            writeln!(indexes, "{statement};").unwrap();
            continue;
        };
        let name = name.split_whitespace().next().unwrap();
        let is_divided = statement.contains("\n    library ");
        // Only a partition can have the option.
        let (table, option) = statement
            .rsplit_once(" WITH (fillfactor")
            .map_or((statement, ""), |(table, _)| (table, " WITH (fillfactor = 80)"));
        if !is_divided {
            writeln!(sql, "{statement};").unwrap();
            continue;
        }
        writeln!(sql, "{table} PARTITION BY HASH (library);").unwrap();
        for number in 0..PARTITIONS {
            writeln!(
                sql,
                "CREATE UNLOGGED TABLE {name}_{number} PARTITION OF {name} \
                 FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number}){option};"
            )
            .unwrap();
        }
    }
    (sql, indexes)
}

/// Fills the tables: most loans have ended, some are accepted, and few are in another state.
async fn fill(connection: &mut PgConnection, server: &Postgres) {
    let loans = format!(
        "INSERT INTO loans (library, id, bucket, borrower, isbn, reference, lending_id, state, \
         begun, accepted, due, ended, end_reason, refusal_code, changed, closed, forgotten, owner) \
         SELECT library, id, n % 1024, decode(md5((n / 4)::text), 'hex'), \
         9780000000000 + (n * 7919) % 5000 * 4 + n % 4, 'R' || n, 'L' || n, state, begun, \
         CASE WHEN state IN ('accepted', 'ending', 'ended') THEN begun END, \
         CASE WHEN state IN ('accepted', 'ending', 'ended') THEN begun + 1800000000 END, \
         CASE WHEN state IN ('ending', 'ended') THEN begun + 900000 END, \
         CASE WHEN state IN ('ending', 'ended') THEN 'returned' END, \
         CASE WHEN state = 'refused' THEN 'X' END, begun, \
         CASE WHEN state IN ('ending', 'ended') THEN begun + 900000 END, \
         CASE WHEN state = 'ended' AND n % 40 > 0 THEN begun END, \
         md5('owner' || n % 7)::uuid \
         FROM (SELECT n, 'NO-' || lpad((n % {LIBRARIES})::text, 7, '0') AS library, \
         md5(n::text)::uuid AS id, 1790000000000 + n * 1000::bigint AS begun, \
         CASE WHEN n % 100 < 12 THEN 'accepted' WHEN n % 1000 = 12 THEN 'ending' \
         WHEN n % 1000 = 13 THEN 'intended' WHEN n % 1000 = 14 THEN 'pending' \
         WHEN n % 1000 = 15 THEN 'unknown' WHEN n % 100 = 16 THEN 'refused' \
         ELSE 'ended' END AS state \
         FROM generate_series(1, {LOANS}) AS n) AS made"
    );
    let history = "INSERT INTO history \
         (library, chain, number, loan, at, to_state, cause, version, mac) \
         SELECT library, md5(library)::uuid, row_number() OVER (), id, begun, 'ended', \
         CASE WHEN bucket % 256 = 0 THEN 'balance' ELSE 'reader' END, 2, \
         decode(repeat(md5('m'), 2), 'hex') FROM loans";
    let delivered =
        "INSERT INTO delivered SELECT library, id, '/a', 1, '' FROM loans WHERE bucket < 512";
    let doubts =
        "INSERT INTO doubts SELECT library, id, begun, begun FROM loans WHERE bucket < 512";
    let chains = "INSERT INTO chains (library, chain, batch, number, mac, opened, seal) \
         SELECT library, md5(library || n)::uuid, 0, 0, ''::bytea, 0, \
         CASE WHEN n > 1 THEN decode(repeat(md5('s'), 2), 'hex') END \
         FROM (SELECT DISTINCT library FROM loans) AS named \
         CROSS JOIN generate_series(0, 149) AS n";
    let members = "INSERT INTO members (member, process, joined, lease, freshness) \
         SELECT md5('owner' || n)::uuid, md5('owner' || n)::uuid, 0, 30000, 60000 \
         FROM generate_series(0, 5) AS n";
    let anchors = "INSERT INTO anchors \
         SELECT library, chain, number, number, mac, mac FROM history WHERE number % 3 = 0";
    for sql in [&loans, history, delivered, doubts, chains, anchors, members] {
        let filled = connection.execute(AssertSqlSafe(sql.to_owned())).await;
        filled.unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
    }
}

/// Fills the books of reports: most loans are assessed, and most reports are settled.
async fn fill_reports(connection: &mut PgConnection) {
    let [index, to_examine] = [LOANS_TO_REPORT, LOANS_TO_EXAMINE]
        .map(|sql| sql.replace("CONCURRENTLY IF NOT EXISTS ", ""));
    let assess = "UPDATE loans SET licence_type = 'PACKAGE', \
         assessed = CASE WHEN bucket % 100 > 0 THEN begun END";
    let reports = "INSERT INTO reports (library, model, subject, loan, bucket, isbn, \
         licence_type, date, evidence, measured, state, changed) \
         SELECT library, 'PAY_PER_LOAN', id::text, id, bucket, isbn, 'PAY_PER_LOAN', \
         '2026-' || lpad((bucket % 12 + 1)::text, 2, '0') || '-07', 'none', begun, \
         CASE WHEN bucket % 100 > 0 THEN 'reported' ELSE 'due' END, begun FROM loans";
    for sql in [&index, &to_examine, assess, reports] {
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }
}

/// Which rows a statement may read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reach {
    /// Those of one partition.
    One,
    /// Those of all partitions.
    All,
}

const LIBRARY: &str = "'NO-0000042'";
const ID: &str = "md5('42')::uuid";
const ACCESS: &str = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";
const KEY: &str = "'NO-0000042', decode(md5('10'), 'hex'), 9780000010394";
const LATE: i64 = 1_790_190_000_000;

/// Returns every statement that reads, with arguments.
fn statements() -> Vec<(String, Reach, String)> {
    use Reach::{All, One};
    let buckets = (0..341).map(|bucket| bucket.to_string()).collect::<Vec<_>>().join(",");
    let buckets = format!("'{{{buckets}}}'::smallint[]");
    let id = format!("{LIBRARY}, {ID}");
    let ids = format!("{LIBRARY}, ARRAY[{ID}, md5('242')::uuid]");
    let of_libraries = format!("ARRAY[{LIBRARY}, 'NO-0000043'], ARRAY[{ID}, md5('43')::uuid]");
    let late_due = 1_790_190_000_000i64 + 1_800_000_000;
    let all: Vec<(&str, Reach, String)> = vec![
        (&queries::NEWEST, One, KEY.into()),
        (&queries::LAST_END, One, KEY.into()),
        (&queries::BY_ID, One, id.clone()),
        (queries::OPENED, One, id.clone()),
        (queries::OWNER, One, id.clone()),
        (queries::HISTORY, One, id.clone()),
        (&queries::BY_IDS, One, ids.clone()),
        (&queries::BY_REFERENCE, One, format!("'R42', {LIBRARY}")),
        (details::DELIVERED, One, ids),
        (details::DOUBTS, One, format!("{LIBRARY}, {LATE}")),
        (details::ENDED_BY_BALANCE, One, format!("{LATE}, {LIBRARY}")),
        (&worklist::OLDEST_LIVE, One, LIBRARY.into()),
        (&queries::BY_UUID, All, ID.into()),
        (&queries::BY_IDS_OF_LIBRARIES, All, of_libraries.clone()),
        (&queries::BY_ANY_REFERENCE, All, "'R42'".into()),
        (&queries::BY_LENDING_ID, All, format!("'L42', {ID}")),
        (queries::NEXT_LIBRARY, All, LIBRARY.into()),
        (details::DELIVERED_OF_LIBRARIES, All, of_libraries),
        (details::ALL_ENDED_BY_BALANCE, All, LATE.to_string()),
        (listing::BEGUN, All, ID.into()),
        (&worklist::DUE, All, format!("{late_due}, 0, '', {ID}, {buckets}, 100")),
        (worklist::COUNT_DUE, All, format!("{}, {buckets}", 1_791_810_000_000i64)),
        (worklist::NEXT_DUE, All, format!("{late_due}, {buckets}")),
        (worklist::COUNT_ACCEPTED, All, String::new()),
        (worklist::ENDS, All, format!("{LATE}, '', {ID}, {buckets}, 5000")),
        (worklist::OLDEST_END, All, String::new()),
        (&reports::TO_ASSESS, All, format!("'PACKAGE', {ID}, {buckets}, 200")),
        (&reports::IN_STATE, All, format!("'due', {ID}, {buckets}, 200")),
        (&reports::OF_LOAN, All, ID.into()),
        (reports::COUNT, All, "'due'".into()),
        (&examinations::TO_EXAMINE, One, format!("{LIBRARY}, 100")),
        (examinations::WAITS, One, id.clone()),
        (&usage::LOANS, One, format!("{LIBRARY}, {LATE}, {}, 100", LATE + 86_400_000)),
        (&usage::COSTS, One, format!("{LIBRARY}, '2026-10-07', 100")),
        (&usage::LENT, One, format!("{LIBRARY}, {LATE}, 100")),
        (&usage::DECIDED, One, format!("{LIBRARY}, {LATE}, 100")),
        (&usage::FAILED, One, format!("{LIBRARY}, {LATE}, 100")),
        (reports::LATE, All, LATE.to_string()),
        (&check::REPORTS, All, format!("{id}, 2000")),
        (worklist::COUNT_ENDS, All, format!("{LATE}, {buckets}")),
        (&worklist::UNDECIDED_IDS_OF, All, "md5('owner1')::uuid".into()),
        (&worklist::ORPHANS, All, format!("{buckets}, {ID}, 500")),
        (&worklist::TO_FORGET, All, format!("{LATE}, {buckets}, 500")),
        (closed::CLOSED, All, format!("{LATE}, '', {ID}, 5000")),
        (closed::ACKNOWLEDGE, All, ID.into()),
        (barrier::POLLS, All, String::new()),
    ];
    let mut all: Vec<_> =
        all.into_iter().map(|(sql, reach, arguments)| (sql.to_owned(), reach, arguments)).collect();
    all.extend(listings());
    all.extend(report_listings());
    all.extend(writes());
    all.extend(maintenance());
    all
}

/// Returns every statement that verifies, checks or prunes, with arguments.
fn maintenance() -> Vec<(String, Reach, String)> {
    use Reach::{All, One};
    let ids = format!("{LIBRARY}, ARRAY[{ID}, md5('242')::uuid]");
    let chain = format!("{LIBRARY}, md5('NO-000004242')::uuid");
    let ended = format!("ARRAY[{LIBRARY}], ARRAY[{ID}], '{{1}}', ARRAY[''::bytea]");
    let ended = format!("{ended}, '{{1}}', ARRAY[''::bytea]");
    let accesses = format!("ARRAY[{LIBRARY}], {ACCESS}, 0, {LATE}, 100, NULL");
    let accesses = format!("{accesses}, {LATE}, {LIBRARY}, {ID}, 0");
    let before = jiff::Timestamp::from_millisecond(LATE).unwrap();
    let mut all: Vec<(String, Reach, String)> = [
        (whole_ledger::FIRST_LIBRARY, All, String::new()),
        (whole_ledger::NEXT_LIBRARY, All, LIBRARY.to_owned()),
        (chain_walk::ROW, One, chain.clone()),
        (chain_walk::ANCHORS, One, format!("{chain}, 0, 2000")),
        (chain_walk::STEPS, One, format!("{chain}, 0, 2000")),
        (recorded_heads::RECORDS, One, format!("{LIBRARY}, {ID}, 0, {ID}, 0, 2000")),
        (&ended_chains::ENDED, All, format!("'', {ID}, 200")),
        (recorded_heads::NAMED, One, format!("{LIBRARY}, {ID}, 0, {ID}, 0, ARRAY['x'], 100")),
        (chain_seals::OWN, All, format!("ARRAY[{LIBRARY}], {ID}")),
        (chain_seals::OTHERS, All, format!("ARRAY[{LIBRARY}], {ID}")),
        (chain_seals::OPEN, One, format!("{LIBRARY}, ARRAY[{ID}]")),
        (chain_seals::SEAL, All, ended),
        (own_chains::OWN_ENDS, All, format!("ARRAY[{LIBRARY}], {ID}")),
        (other_chains::OTHERS, All, format!("ARRAY[{LIBRARY}], {ID}")),
        (accesses::OLD, One, format!("{LIBRARY}, {ACCESS}, {LATE}, 200")),
        (accesses::ACCESSES, All, accesses),
        (accesses::HAS_LOANS, One, LIBRARY.into()),
        (accesses::REMOVE, One, format!("{chain}, '{{1,2}}', {ACCESS}")),
        (accesses::NEXT_LIBRARY, All, "''".into()),
        (head_records::OWN, One, chain.clone()),
        (&head_records::APPEND, One, format!("{chain}, 0, 1, '', {ID}, {LATE}, 'heads', 'x'")),
        (&whole_ledger::CHAINS, One, format!("{LIBRARY}, {ID}, 2000")),
        (&last_steps::PAGE, One, format!("{LIBRARY}, {ID}, 100")),
        (check::STEPS, One, format!("{LIBRARY}, {ID}, 0, 100")),
        (chain_walk::STEP_MAC, One, format!("{chain}, 7")),
        (&last_steps::BY_IDS, One, ids.clone()),
        (check::DELIVERED, One, format!("{LIBRARY}, {ID}, '', 100")),
        (prune::CHAINS_OF, One, ids.clone()),
        (prune::LOCK_CHAINS, One, ids.clone()),
        (prune::REMOVE_TALLIES, One, ids.clone()),
        (prune::REMOVE_LOANS, One, ids.clone()),
        (anchors::STEPS_OF, One, ids.clone()),
        (anchors::LEFT, One, format!("{chain}, ARRAY[1, 7]")),
        (anchors::RIGHT, One, format!("{chain}, ARRAY[1, 7]")),
        (anchors::MACS, One, format!("{chain}, ARRAY[1, 7]")),
        (anchors::REMOVE_STEPS, One, ids.clone()),
        (anchors::REMOVE_ANCHORS, One, format!("{chain}, ARRAY[1, 7]")),
    ]
    .map(|(sql, reach, arguments)| (sql.to_owned(), reach, arguments))
    .into();
    for which in [Prunable::Ended { before }, Prunable::NeverLent { before, now: before }] {
        let search = format!("{LATE}, '{{1}}', {}, '', {ID}, 2000", LATE - 1_000_000);
        all.push((prunable::search_statement(which), All, search));
        all.push((prune::lock_statement(which), One, format!("{ids}, {LATE}")));
    }
    all
}

/// Returns every statement of a write transaction, with arguments. Each names one library.
fn writes() -> Vec<(String, Reach, String)> {
    let id = format!("{LIBRARY}, {ID}");
    let ids = format!("{LIBRARY}, ARRAY[{ID}, md5('242')::uuid]");
    let chain = format!("{LIBRARY}, md5('NO-000004242')::uuid");
    let keys = "ARRAY[decode(md5('10'), 'hex')], ARRAY[9780000010394]";
    let none = "ARRAY[]::uuid[]";
    let nulls = ["text", "text", "bigint", "bigint", "text", "text", "bigint", "text", "text"];
    let nulls: Vec<String> = nulls.map(|name| format!("ARRAY[NULL]::{name}[]")).into();
    let nulls = nulls.join(", ");
    let mut all: Vec<(&str, String)> = vec![
        (
            &loans::CLAIM,
            format!("{id}, ARRAY[{ID}], '{{1}}', {keys}, ARRAY['R'], ARRAY[1], ARRAY[1]"),
        ),
        (&loans::LOCK, ids.clone()),
        (&loans::STANDINGS, format!("{LIBRARY}, {keys}, {none}")),
        (loans::UPDATE, format!("{LIBRARY}, ARRAY[{ID}], {nulls}, ARRAY['x'], ARRAY[1], ARRAY[1]")),
        (loans::REMOVE, ids.clone()),
        (&loans::ADOPT, format!("{id}, {ID}")),
        (loans::SET_PROGRESS, format!("{id}, 1")),
        (loans::MARK_OPENED, format!("{id}, 1")),
        (loans::IS_OPENED, id.clone()),
        (examinations::SET, format!("{id}, 1")),
        (delivered::LOCK, format!("{ids}, ARRAY['/a', '/a']")),
        (
            delivered::WRITE,
            format!("{ids}, ARRAY['/a', '/a'], ARRAY[1, 1], ARRAY['', '']::bytea[]"),
        ),
        (doubts::CLEAR, format!("{LIBRARY}, {LATE}, {none}")),
        (doubts::CONFIRM, format!("{LIBRARY}, {LATE}, ARRAY[{ID}]")),
        (
            &reports::STEP,
            format!(
                "'due', false, NULL, 1, 1, 'x', false, NULL, NULL, NULL, NULL, NULL, {ID}, \
                 {LIBRARY}, ARRAY['sending'], 1"
            ),
        ),
        (reports::ASSESS, format!("{ids}, {LATE}")),
        (reports::IS_PACKAGE_KNOWN, format!("{LIBRARY}, 'PACKAGE', 'K1', {LATE}, {ID}")),
        (&retention::FORGET, format!("{LIBRARY}, {LATE}, {LATE}, 500")),
        (retention::ERASE, ids),
        (&chain::LOCK, format!("{chain}, '', {ID}")),
        (chain::OPEN, format!("{chain}, ''")),
        (chain::BATCH, chain),
    ];
    let counts: Vec<Count> = [Counted::Lent, Counted::Decided, Counted::Failed]
        .into_iter()
        .flat_map(|counted| [false, true].map(|of_borrower| (counted, of_borrower)))
        .map(|(counted, of_borrower)| Count {
            counted,
            of_borrower,
            since: jiff::Timestamp::MIN,
            maximum: 1,
        })
        .collect();
    let begun = loans::begun_query(&counts);
    let windows = format!(", {LATE}, 20").repeat(counts.len());
    all.push((&begun, format!("{LIBRARY}, decode(md5('10'), 'hex'), {none}{windows}")));
    all.into_iter().map(|(sql, arguments)| (sql.to_owned(), Reach::One, arguments)).collect()
}

/// Returns the first and a later page of a listing with each filter.
fn listings() -> Vec<(String, Reach, String)> {
    let library = Some("NO-0000042".parse().unwrap());
    let borrower = Some(Borrower::from_bytes([7; 16]));
    let isbn = Some("9780306406157".parse().unwrap());
    let since = Some(jiff::Timestamp::from_millisecond(LATE).unwrap());
    let filters = [
        (Filter::default(), Reach::All, ""),
        (Filter { library, ..Filter::default() }, Reach::One, "'NO-0000042', "),
        (
            Filter { library, state: Some(LoanState::Ended), ..Filter::default() },
            Reach::One,
            "'NO-0000042', ",
        ),
        (Filter { borrower, ..Filter::default() }, Reach::All, "decode(md5('10'), 'hex'), "),
        (Filter { isbn, ..Filter::default() }, Reach::All, "9780000010394, "),
        (Filter { state: Some(LoanState::Ended), ..Filter::default() }, Reach::All, ""),
        (Filter { state: Some(LoanState::Ending), ..Filter::default() }, Reach::All, ""),
        (Filter { since, ..Filter::default() }, Reach::All, "1790190000000, "),
    ];
    let mut statements = Vec::new();
    for (filter, reach, arguments) in filters {
        for after in [None, Some((LATE, uuid::Uuid::nil()))] {
            let sql = listing::page_query(&filter, after, 50).sql().as_str().to_owned();
            let position = after.map_or(String::new(), |_| format!("{LATE}, {ID}, "));
            statements.push((sql, reach, format!("{arguments}{position}50")));
        }
    }
    statements
}

/// Returns the listings of reports with each filter.
fn report_listings() -> Vec<(String, Reach, String)> {
    let from = Some("2026-10-01".parse().unwrap());
    let month = ReportFilter {
        from,
        before: Some("2026-11-01".parse().unwrap()),
        limit: 50,
        ..ReportFilter::default()
    };
    let library = Some("NO-0000042".parse().unwrap());
    let for_a_person = ReportFilter { for_a_person: true, limit: 50, ..ReportFilter::default() };
    let days = "'2026-10-01', '2026-11-01', 50";
    let of = |filter: &ReportFilter| reports::listing(filter).sql().as_str().to_owned();
    vec![
        (of(&month), Reach::All, days.to_owned()),
        (of(&ReportFilter { library, ..month }), Reach::One, format!("{LIBRARY}, {days}")),
        (of(&for_a_person), Reach::All, "50".to_owned()),
    ]
}

/// Returns the plan of a statement. `mode` is a value of `plan_cache_mode`.
async fn plan(connection: &mut PgConnection, sql: &str, arguments: &str, mode: &str) -> String {
    let mut run = async |sql: String| connection.fetch_all(AssertSqlSafe(sql)).await.unwrap();
    run(format!("SET plan_cache_mode = {mode}")).await;
    run(format!("PREPARE explained AS {sql}")).await;
    let arguments = if arguments.is_empty() { String::new() } else { format!("({arguments})") };
    let rows = run(format!("EXPLAIN EXECUTE explained{arguments}")).await;
    run("DEALLOCATE explained".to_owned()).await;
    rows.iter().map(|row| row.get::<String, _>(0) + "\n").collect()
}

/// Returns the partitions that a plan reads, and those that it reads without an index.
fn partitions(plan: &str) -> (Vec<String>, Vec<String>) {
    let mut read = Vec::new();
    let mut scanned = Vec::new();
    for line in plan.lines() {
        let Some((node, relation)) = line.split_once(" on ") else { continue };
        // The rows to change are those that another node reads.
        if ["Insert", "Update", "Delete"].iter().any(|change| node.contains(change)) {
            continue;
        }
        let relation = relation.split_whitespace().next().unwrap().to_owned();
        let is_large = LARGE.iter().any(|table| {
            relation == *table
                || relation
                    .strip_prefix(&format!("{table}_"))
                    .is_some_and(|rest| rest.parse::<u8>().is_ok())
        });
        if is_large && node.contains("Seq Scan") {
            scanned.push(relation.clone());
        }
        if is_large && !read.contains(&relation) {
            read.push(relation);
        }
    }
    (read, scanned)
}

#[tokio::test]
async fn every_row_is_found_by_index_and_hot_ones_in_one_partition() {
    let Some(server) = Postgres::shared().await else { return };
    let database = server.database().await;
    let mut connection = database.connect().await;
    let (tables, indexes) = partitioned_schema();
    connection.execute(AssertSqlSafe(tables)).await.unwrap();
    fill(&mut connection, server).await;
    connection.execute(AssertSqlSafe(indexes)).await.unwrap();
    fill_reports(&mut connection).await;
    // As autovacuum does.
    connection.execute("VACUUM ANALYZE").await.unwrap();
    let scan = plan(&mut connection, "SELECT * FROM loans", "", "auto").await;
    assert_eq!(partitions(&scan).1.len(), PARTITIONS, "the test sees scans: {scan}");
    let mut wrong = String::new();
    for (sql, reach, arguments) in statements() {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let plan = plan(&mut connection, &sql, &arguments, mode).await;
            let (read, scanned) = partitions(&plan);
            // Partitions of several tables with one number are those of the same libraries.
            let numbers: HashSet<_> = read.iter().map(|name| name.rsplit_once('_')).collect();
            let numbers: HashSet<_> = numbers.into_iter().flatten().map(|(_, n)| n).collect();
            let is_one = reach == Reach::All || numbers.len() <= 1;
            let reads_nothing = sql.contains("members") || sql.starts_with("INSERT");
            assert!(reads_nothing || !read.is_empty(), "{plan}");
            if !scanned.is_empty() || !is_one {
                writeln!(wrong, "{mode}: {sql}\n{plan}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
