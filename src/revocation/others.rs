//! The other replicas as the renewals show them: which of them have gone without a word.

use std::{collections::HashMap, time::Duration};

use crate::{domain::ids::Incarnation, store::replicas::Other};

/// The others, and since when each has stood still, by our own clock of uptime.
#[derive(Debug, Default)]
pub struct Others(HashMap<Incarnation, (i64, Duration)>);

impl Others {
    /// Takes note of what an answer says, which was received at `uptime`. Returns those that have
    /// stood still for as long as what they did may hold: none of them has a lease any more. Each
    /// is named again only after as long again.
    pub fn look(&mut self, others: &[Other], uptime: Duration) -> Vec<Other> {
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
    fn a_replica_is_gone_when_it_has_stood_still_for_long_enough_under_our_eyes() {
        let mut others = Others::default();
        let at = Duration::from_secs;
        assert_eq!(others.look(&[other(1, 5), other(2, 5)], at(100)), []);
        assert_eq!(others.look(&[other(1, 6), other(2, 5)], at(109)), []);
        assert_eq!(others.look(&[other(1, 6), other(2, 5), other(3, 0)], at(111)), [other(2, 5)]);
        assert_eq!(
            others.look(&[other(1, 6), other(2, 5), other(3, 0)], at(112)),
            [],
            "once in a while is enough"
        );
        assert_eq!(others.look(&[other(1, 6), other(3, 0)], at(120)), [other(1, 6)]);
        assert_eq!(others.look(&[other(2, 5)], at(122)), [], "who comes back is looked at anew");
    }
}
