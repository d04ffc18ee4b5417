//! The replicas of the service: which of them gets the next call.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// The time for which a replica that could not be reached gets no calls if another one can get
/// them.
const AVOIDED_FOR: Duration = Duration::from_secs(2);

/// The replicas. Calls go to one after the other.
///
/// tonic can balance calls by itself (`Channel::balance_list`), but then a repetition may go to the
/// replica that has just failed.
pub struct Endpoints {
    replicas: Vec<Replica>,
    next: AtomicUsize,
    began: Instant,
}

/// A replica.
pub struct Replica {
    number: usize,
    endpoint: Endpoint,
    channel: Channel,
    /// The time since `began`, in milliseconds, until which other replicas are preferred.
    avoided_until: AtomicU64,
}

impl Replica {
    /// Returns the number of the replica among all.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns the connection that calls share. It is opened by the first call.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns the address and the settings of connections.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Endpoints {
    /// Creates the replicas, of which there must be at least one.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let replica = |(number, endpoint): (usize, Endpoint)| Replica {
            number,
            channel: endpoint.connect_lazy(),
            endpoint,
            avoided_until: AtomicU64::new(0),
        };
        Self {
            next: AtomicUsize::new(0),
            began: Instant::now(),
            replicas: endpoints.into_iter().enumerate().map(replica).collect(),
        }
    }

    /// Returns the number of replicas.
    pub fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Returns the replica that gets the next call: if possible one that has not failed recently,
    /// and in any case another one than `failed`, if there is another one. `failed` is the number
    /// of the replica that has just failed to answer the same call.
    pub fn next(&self, failed: Option<usize>) -> Option<&Replica> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let now = self.now();
        let rotated =
            || self.replicas.iter().cycle().skip(first % self.len().max(1)).take(self.len());
        let others = || rotated().filter(|replica| Some(replica.number) != failed);
        others()
            .find(|replica| replica.avoided_until.load(Ordering::Relaxed) <= now)
            .or_else(|| others().next())
            .or_else(|| rotated().next())
    }

    /// Prefers other replicas for a while, because this one has failed.
    pub fn avoid(&self, replica: &Replica) {
        let until = self.now().saturating_add(millis(AVOIDED_FOR));
        replica.avoided_until.store(until, Ordering::Relaxed);
    }

    /// Prefers other replicas than the one with this number.
    pub fn avoid_number(&self, number: usize) {
        if let Some(replica) = self.replicas.get(number) {
            self.avoid(replica);
        }
    }

    /// Prefers a replica no less than others, because it has answered.
    pub fn trust(&self, replica: &Replica) {
        if replica.avoided_until.load(Ordering::Relaxed) != 0 {
            replica.avoided_until.store(0, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_go_around_and_avoid_a_replica_that_has_failed() {
        let addresses = ["http://a", "http://b", "http://c"];
        let endpoints = Endpoints::new(addresses.map(Endpoint::from_static).to_vec());
        let hosts = |count| -> String {
            let next = || endpoints.next(None).unwrap().endpoint().uri().host().unwrap().to_owned();
            (0..count).map(|_| next()).collect()
        };
        assert_eq!(hosts(4), "abca");
        let b = endpoints.next(None).unwrap();
        endpoints.avoid(b);
        assert_eq!(hosts(4), "cacc");
        endpoints.trust(b);
        assert_eq!(hosts(3), "abc");
        endpoints.replicas.iter().for_each(|replica| endpoints.avoid(replica));
        assert_eq!(hosts(3), "abc", "a replica is chosen although all have failed");
    }

    #[tokio::test]
    async fn a_repetition_goes_to_another_replica_if_there_is_one() {
        let replicas = |addresses: &[&'static str]| -> Endpoints {
            Endpoints::new(addresses.iter().map(|url| Endpoint::from_static(url)).collect())
        };
        let two = replicas(&["http://a", "http://b"]);
        for _ in 0..3 {
            // Other calls may take any turns in between.
            assert_eq!(two.next(Some(0)).unwrap().number(), 1);
        }
        two.avoid_number(1);
        assert_eq!(two.next(Some(0)).unwrap().number(), 1, "the one that failed just now is worse");
        let one = replicas(&["http://a"]);
        assert_eq!(one.next(Some(0)).unwrap().number(), 0);
    }
}
