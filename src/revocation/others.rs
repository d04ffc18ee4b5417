//! Watches the other replicas by means of the answers to renewals, and finds replicas that have
//! stopped without leaving.

use std::{collections::HashMap, time::Duration};

use crate::{domain::ids::Incarnation, store::replicas::Other};

/// The other replicas. For each, the number of its last renewal, and the uptime at which this
/// number was first seen.
#[derive(Debug, Default)]
pub struct Others(HashMap<Incarnation, (i64, Duration)>);

impl Others {
    /// Updates the replicas from an answer that was received at `uptime`. Returns the replicas that
    /// have not renewed for longer than their leases can be valid, so that none of these replicas
    /// has a lease any more. After a replica was returned, it is returned again only when the same
    /// time has passed once more.
    pub fn find_gone(&mut self, others: &[Other], uptime: Duration) -> Vec<Other> {
        self.0
            .retain(|incarnation, _| others.iter().any(|other| other.incarnation == *incarnation));
        let gone = others.iter().filter(|other| {
            let (renewals, since) =
                self.0.entry(other.incarnation).or_insert((other.renewals, uptime));
            let is_gone =
                *renewals == other.renewals && uptime.saturating_sub(*since) > other.max_validity;
            if *renewals != other.renewals || is_gone {
                (*renewals, *since) = (other.renewals, uptime);
            }
            is_gone
        });
        gone.copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::revocation::Seq;

    fn other(incarnation: u8, renewals: i64) -> Other {
        let incarnation = Incarnation::new([incarnation; 16]);
        Other { incarnation, applied: Seq(0), renewals, max_validity: Duration::from_secs(10) }
    }

    #[test]
    fn a_replica_is_gone_once_its_renewals_have_not_advanced_for_longer_than_its_lease() {
        let mut others = Others::default();
        let at = Duration::from_secs;
        assert_eq!(others.find_gone(&[other(1, 5), other(2, 5)], at(100)), []);
        assert_eq!(others.find_gone(&[other(1, 6), other(2, 5)], at(109)), []);
        assert_eq!(
            others.find_gone(&[other(1, 6), other(2, 5), other(3, 0)], at(111)),
            [other(2, 5)]
        );
        assert_eq!(
            others.find_gone(&[other(1, 6), other(2, 5), other(3, 0)], at(112)),
            [],
            "the same replica is not returned again at once"
        );
        assert_eq!(others.find_gone(&[other(1, 6), other(3, 0)], at(120)), [other(1, 6)]);
        assert_eq!(
            others.find_gone(&[other(2, 5)], at(122)),
            [],
            "a replica that comes back is watched anew"
        );
    }
}
