//! The division of background work among the members of a database, and of ends among the
//! processes on a SQLite file.
//!
//! Each loan belongs to one of 1024 buckets, by its UUID, and each library to one by its name. A
//! member does the work of the buckets that it owns by rendezvous hashing: of all members, the one
//! whose hash with the bucket is the greatest. So every member computes the same owners without a
//! leader. When a member joins or leaves, only buckets that it gains or loses get another owner.
//!
//! The functions are fixed: a bucket is stored in the row of a loan, and versions may run side by
//! side.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher24;
use uuid::Uuid;

use crate::ledger::membership::BUCKETS;
use crate::loan::LibraryId;

/// The bits of a hash that select one of [`BUCKETS`].
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Returns the bucket of a loan: the ten highest bits of SipHash-2-4, with a key of zeros, of the
/// 16 bytes of its UUID.
pub(in crate::ledger) fn bucket_of(loan: Uuid) -> i16 {
    bucket_of_bytes(loan.as_bytes())
}

/// Returns the bucket of a library: the same function of the bytes of its ISIL.
pub(in crate::ledger) fn bucket_of_library(library: LibraryId) -> i16 {
    bucket_of_bytes(library.as_str().as_bytes())
}

fn bucket_of_bytes(bytes: &[u8]) -> i16 {
    let mut hasher = SipHasher24::new();
    hasher.write(bytes);
    // Ten bits fit.
    i16::try_from(hasher.finish() >> (u64::BITS - BUCKET_BITS)).unwrap_or_default()
}

/// Returns the member that owns a bucket: the one with the greatest SipHash-2-4, with a key of
/// zeros, of its UUID and the two bytes of the bucket, the high one first.
pub(in crate::ledger) fn owner_of(bucket: i16, members: &[Uuid]) -> Option<Uuid> {
    let weight = |member: &Uuid| {
        let mut hasher = SipHasher24::new();
        hasher.write(member.as_bytes());
        hasher.write(&bucket.to_be_bytes());
        hasher.finish()
    };
    members.iter().copied().max_by_key(|member| (weight(member), *member))
}

/// Returns the buckets that `member` owns among these members, in ascending order.
pub(in crate::ledger) fn owned_by(member: Uuid, members: &[Uuid]) -> Arc<[i16]> {
    (0..BUCKETS).filter(|bucket| owner_of(*bucket, members) == Some(member)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u128) -> Vec<Uuid> {
        (1..=count).map(|number| Uuid::from_u128(number * 0x1234_5678_9abc)).collect()
    }

    /// Rows have these values, so they must never change.
    #[test]
    fn bucket_of_a_loan_is_fixed() {
        let buckets = [0, 1, u128::MAX].map(|id| bucket_of(Uuid::from_u128(id)));
        assert_eq!(buckets, [203, 130, 475]);
        assert_eq!(bucket_of_library("NO-0301000".parse().unwrap()), 417);
        assert_eq!(owner_of(7, &members(3)), Some(members(3)[1]));
    }

    #[test]
    fn loans_are_spread_over_all_buckets() {
        let mut counts = vec![0; BUCKETS as usize];
        for id in 0..100 * BUCKETS as u128 {
            counts[bucket_of(Uuid::from_u128(id)) as usize] += 1;
        }
        let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*fewest > 50 && *most < 150, "{fewest}..{most}");
    }

    #[test]
    fn each_bucket_has_one_owner_and_members_share_equally() {
        let members = members(5);
        let shares: Vec<_> = members.iter().map(|member| owned_by(*member, &members)).collect();
        let mut all: Vec<i16> = shares.iter().flat_map(|share| share.to_vec()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..BUCKETS).collect::<Vec<_>>());
        assert!(shares.iter().all(|share| (150..260).contains(&share.len())), "{shares:?}");
        assert!(owned_by(Uuid::from_u128(9), &members).is_empty(), "not a member");
    }

    #[test]
    fn order_of_members_does_not_matter() {
        let mut members = members(7);
        let before: Vec<_> = (0..BUCKETS).map(|bucket| owner_of(bucket, &members)).collect();
        members.reverse();
        let after: Vec<_> = (0..BUCKETS).map(|bucket| owner_of(bucket, &members)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn only_buckets_of_a_leaving_member_get_another_owner() {
        let (five, four) = (members(5), members(4));
        for bucket in 0..BUCKETS {
            let (before, after) = (owner_of(bucket, &five), owner_of(bucket, &four));
            assert!(before == after || before == Some(five[4]), "{bucket}");
        }
    }
}
