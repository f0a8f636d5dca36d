//! Reads `listen.public`: one address, or a list of them.
//!
//! `service` calls it.

use std::net::SocketAddr;

use toml::de::DeValue;

use super::values::address;
use crate::public_addresses::{PublicAddresses, overlap};

/// The most addresses. Each has a socket for every worker.
const MAX_ADDRESSES: usize = 16;

/// Reads one address, or a list of addresses that can all be bound.
pub(super) fn read(value: &DeValue<'_>) -> Result<PublicAddresses, String> {
    let DeValue::Array(list) = value else { return address(value).map(PublicAddresses::from) };
    if list.len() > MAX_ADDRESSES {
        let number = list.len();
        return Err(format!("the list has {number} addresses. Write at most {MAX_ADDRESSES}"));
    }
    let mut addresses: Vec<SocketAddr> = Vec::with_capacity(list.len());
    for entry in list {
        let address = address(entry.get_ref())?;
        if let Some(other) = addresses.iter().find(|other| overlap(**other, address)) {
            return Err(overlapping(*other, address));
        }
        addresses.push(address);
    }
    let empty = "the list is empty. Write an address like \"0.0.0.0:8443\"";
    PublicAddresses::from_list(addresses).ok_or_else(|| empty.to_owned())
}

/// Returns why two addresses are not both allowed.
fn overlapping(one: SocketAddr, other: SocketAddr) -> String {
    let (ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    if ip == other_ip {
        return format!("{other} is listed twice. Remove one of them");
    }
    let (wildcard, narrow) = if ip.is_unspecified() { (one, other) } else { (other, one) };
    format!("{wildcard} includes {narrow}. Remove one of them, or write another port")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Result<String, String> {
        read(DeValue::parse(text).unwrap().get_ref()).map(|addresses| addresses.to_string())
    }

    #[test]
    fn one_address_and_a_list_are_read() {
        let seventeen: Vec<String> = (1..=17).map(|port| format!("\"[::1]:{port}\"")).collect();
        assert!(found(&format!("[{}]", seventeen[1..].join(", "))).is_ok());
        for (text, addresses) in [
            ("\"0.0.0.0:8443\"", "0.0.0.0:8443"),
            ("[\"0.0.0.0:8443\"]", "0.0.0.0:8443"),
            ("[\"0.0.0.0:8443\", \"[::]:8443\"]", "0.0.0.0:8443, [::]:8443"),
            ("[\"127.0.0.1:0\", \"127.0.0.1:0\"]", "127.0.0.1:0, 127.0.0.1:0"),
        ] {
            assert_eq!(found(text).as_deref(), Ok(addresses));
        }
    }

    #[test]
    fn lists_that_cannot_be_bound_are_mistakes() {
        let seventeen: Vec<String> = (1..=17).map(|port| format!("\"[::1]:{port}\"")).collect();
        for (text, sentence) in [
            ("[]", "the list is empty"),
            (&format!("[{}]", seventeen.join(", ")), "the list has 17 addresses. Write at most 16"),
            ("[\"127.0.0.1:1\", \"127.0.0.1:1\"]", "127.0.0.1:1 is listed twice"),
            ("[\"127.0.0.1:1\", \"0.0.0.0:1\"]", "0.0.0.0:1 includes 127.0.0.1:1. Remove one"),
            ("[\"[::]:1\", \"[::1]:1\"]", "[::]:1 includes [::1]:1. Remove one"),
            ("[\"127.0.0.1\"]", "\"127.0.0.1\" is not an address with a port"),
            ("[1]", "this is a number"),
            ("{ ipv4 = 1 }", "this is a table"),
        ] {
            let error = found(text).unwrap_err();
            assert!(error.starts_with(sentence), "{text}: {error}");
        }
    }
}
