//! A TCP proxy in front of a service, whose connections can be cut.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_util::task::AbortOnDropHandle;

/// A proxy.
pub struct Link {
    address: SocketAddr,
    cut: broadcast::Sender<()>,
    _accepting: AbortOnDropHandle<()>,
}

impl Link {
    /// Creates a proxy in front of the service at this URL.
    pub async fn to(url: &str) -> Self {
        let target: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, _) = broadcast::channel(1);
        let sender = cut.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = sender.subscribe();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Self { address, cut, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Returns the URL of the service through this proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes all connections. New ones work.
    pub fn cut(&self) {
        // There may be no connection.
        let _ = self.cut.send(());
    }
}
