//! The replicas of a run. None of them is stopped before the run ends.

use std::{collections::VecDeque, sync::Mutex};

use countersign_test_support::{
    cluster::{Home, Replica},
    ledger::Client,
    workload::Replicas,
};
use tonic::transport::{Channel, Endpoint};

/// The number of replicas, all of which run from the beginning to the end.
pub const PERMANENT: usize = 2;
/// The number of connections to each replica.
const CHANNELS: usize = 12;

/// All replicas of a run, and the connections to them.
pub struct Fleet {
    replicas: Mutex<Vec<Replica>>,
    channels: Vec<Mutex<VecDeque<Channel>>>,
    _home: Home,
}

impl Fleet {
    /// Starts the replicas on this database, and waits until they serve.
    pub async fn start(url: &str, settings: &[(&str, &str)]) -> Self {
        let home = Home::create();
        let mut replicas: Vec<_> = (0..PERMANENT).map(|_| home.spawn(url, settings)).collect();
        let mut channels = vec![];
        for replica in &mut replicas {
            replica.await_serving().await;
            let endpoint = Endpoint::from_shared(format!("http://{}", replica.address())).unwrap();
            channels.push(Mutex::new((0..CHANNELS).map(|_| endpoint.connect_lazy()).collect()));
        }
        Self { replicas: Mutex::new(replicas), channels, _home: home }
    }

    /// Returns the indexes of the replicas whose process has ended.
    pub fn fallen(&self) -> Vec<usize> {
        let mut replicas = self.replicas.lock().unwrap();
        (0..PERMANENT).filter(|place| replicas[*place].has_ended()).collect()
    }

    /// Returns the last lines that each replica has logged.
    pub fn logs(&self) -> Vec<String> {
        let mut replicas = self.replicas.lock().unwrap();
        let last = |(place, replica): (usize, &mut Replica)| {
            let log = replica.log();
            log[log.len().saturating_sub(40)..]
                .iter()
                .map(|line| format!("replica {place}: {line}"))
                .collect::<Vec<_>>()
        };
        replicas.iter_mut().enumerate().flat_map(last).collect()
    }
}

impl Replicas for Fleet {
    fn places(&self) -> usize {
        PERMANENT
    }

    fn permanent(&self) -> usize {
        PERMANENT
    }

    fn client(&self, place: usize) -> Option<Client> {
        let mut channels = self.channels[place].lock().unwrap();
        let next = channels.pop_front()?;
        channels.push_back(next.clone());
        Some(Client::new(next))
    }
}
