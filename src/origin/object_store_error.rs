//! Explains the error of an object storage in a sentence for the operator.
//!
//! `reachability` calls it. Storages send an error code in an XML or JSON body. The body may
//! contain a key's ID or the signed text, so a sentence quotes nothing of it but a region.

use super::reachability::Outcome;

/// An error code of a storage, and its meaning. The first code in an error decides.
type Meaning = (&'static str, fn(String) -> Outcome, &'static str);

const MEANINGS: [Meaning; 22] = [
    // Amazon S3 and compatible storages.
    ("NoSuchBucket", Outcome::Failed, "there is no such bucket. Check its name in the address"),
    (
        "InvalidAccessKeyId",
        Outcome::Failed,
        "the storage does not know the access key. Check access_key_id, or the AWS_ACCESS_KEY_ID \
         of this process",
    ),
    (
        "NotSignedUp",
        Outcome::Failed,
        "the storage does not know the access key's account. Check access_key_id, or the \
         AWS_ACCESS_KEY_ID of this process",
    ),
    (
        "SignatureDoesNotMatch",
        Outcome::Failed,
        "the secret does not belong to the access key. Check secret_access_key, or the \
         AWS_SECRET_ACCESS_KEY of this process",
    ),
    (
        "ExpiredToken",
        Outcome::Failed,
        "the temporary credentials of this machine have expired. Renew them",
    ),
    (
        "InvalidToken",
        Outcome::Failed,
        "the session token of this process is not valid. Check AWS_SESSION_TOKEN",
    ),
    (
        "RequestTimeTooSkewed",
        Outcome::Failed,
        "this machine's clock is too far from the storage's. Set it by NTP",
    ),
    (
        "AuthorizationHeaderMalformed",
        Outcome::Failed,
        "the bucket is in another region. Write its region",
    ),
    (
        "IllegalLocationConstraint",
        Outcome::Failed,
        "the bucket is in another region. Write its region",
    ),
    ("PermanentRedirect", Outcome::Failed, "the bucket is in another region. Write its region"),
    ("without LOCATION", Outcome::Failed, "the bucket is in another region. Write its region"),
    // Azure Blob Storage.
    (
        "ContainerNotFound",
        Outcome::Failed,
        "there is no such container. Check its name in the address",
    ),
    (
        "AuthenticationFailed",
        Outcome::Failed,
        "the access key is not the account's. Check account and access_key",
    ),
    (
        "InvalidAuthenticationInfo",
        Outcome::Failed,
        "the access key is not valid. Check account and access_key",
    ),
    // Google Cloud Storage.
    (
        "invalid_grant",
        Outcome::Failed,
        "Google refuses the service account's key. Check service_account and this machine's clock",
    ),
    (
        "bucket does not exist",
        Outcome::Failed,
        "there is no such bucket. Check its name in the address",
    ),
    // This machine's own credentials, which none of the three found.
    ("169.254.169.254", Outcome::Failed, NO_CREDENTIALS),
    ("169.254.170.2", Outcome::Failed, NO_CREDENTIALS),
    ("/latest/api/token", Outcome::Failed, NO_CREDENTIALS),
    ("/latest/meta-data", Outcome::Failed, NO_CREDENTIALS),
    ("metadata.google.internal", Outcome::Failed, NO_CREDENTIALS),
    (
        "AccessDenied",
        Outcome::Doubtful,
        "the storage knows the key, but does not allow it to list the bucket. Reading files needs \
         no listing; allow it (s3:ListBucket) to have this checked, and so that a missing file is \
         a 404",
    ),
];

const NO_CREDENTIALS: &str = "no credentials are configured, and this machine has none. Write a \
                              key in the origin's table, or give the machine a role";

/// Explains an error, given its text with all causes.
pub(super) fn explain(text: &str) -> Outcome {
    if let Some((_, outcome, sentence)) = MEANINGS.iter().find(|(code, _, _)| text.contains(code)) {
        return outcome(match named_region(text) {
            Some(region) if sentence.ends_with("region") => {
                format!("{sentence}: region = \"{region}\"")
            }
            _ => (*sentence).to_owned(),
        });
    }
    let status = text.split_once("status code: ").and_then(|(_, after)| after.get(..3));
    match status {
        Some("401" | "403") => Outcome::Failed(
            "the storage refuses the credentials. Check the key, and what it may read".to_owned(),
        ),
        Some("404") => {
            Outcome::Failed("there is no such bucket or endpoint. Check the address".to_owned())
        }
        Some(code) => {
            Outcome::Failed(format!("the storage answers {code}. Check the address and the key"))
        }
        None => Outcome::Failed(
            "the storage cannot be reached. Check the address and the region".to_owned(),
        ),
    }
}

/// Returns the region of the bucket, if S3 names it in the error.
fn named_region(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("<Region>")?;
    let (region, _) = after.split_once("</Region>")?;
    let is_region = region.len() <= 32
        && region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_region.then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(text: &str) -> String {
        match explain(text) {
            Outcome::Reached(sentence)
            | Outcome::Doubtful(sentence)
            | Outcome::Failed(sentence) => sentence,
        }
    }

    #[test]
    fn region_of_bucket_is_named() {
        let text = "status code: 400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>\
                    <Region>eu-north-1</Region>";
        assert!(
            sentence(text).ends_with("Write its region: region = \"eu-north-1\""),
            "{}",
            sentence(text)
        );
        let hostile = text.replace("eu-north-1", "<script>");
        assert!(sentence(&hostile).ends_with("Write its region"));
    }

    #[test]
    fn error_without_known_code_shows_no_body() {
        let text = "status code: 403 Forbidden: <Error>\
                    <AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>";
        assert!(
            sentence(text).contains("refuses the credentials")
                && !sentence(text).contains("AKIASECRET")
        );
        assert!(sentence("status code: 500 Oops: x").contains("answers 500"));
        assert!(sentence("connection refused").contains("cannot be reached"));
    }

    #[test]
    fn missing_credentials_are_named() {
        let text = "Error performing PUT http://169.254.169.254/latest/api/token in 5s - \
                    connection refused";
        assert!(sentence(text).contains("no credentials are configured"));
    }
}
