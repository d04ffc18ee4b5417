//! A client's connection, which writes a short answer whole.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    net::TcpStream,
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Does not say that it could write from several places at once.
///
/// Where a connection can, HTTP/2 sends each message of more than 256 bytes by itself, and what ends the answer, or the next
/// one, in another write: two system calls, and a client that wakes up twice. Where it cannot, that begins beyond 1024 bytes,
/// and the buffer keeps a longer message together with its header.
pub struct Connection(BufWriter<TcpStream>);

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self(BufWriter::new(stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut()).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.get_ref().connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_is_written_arrives_once_it_is_flushed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = Connection::from(listener.accept().await.unwrap().0);
        assert!(!server.is_write_vectored());
        client.write_all(b"asked").await.unwrap();
        let mut asked = [0; 5];
        server.read_exact(&mut asked).await.unwrap();
        for part in [&b"an"[..], b"swe", b"red"] {
            server.write_all(part).await.unwrap();
        }
        server.flush().await.unwrap();
        let mut answered = [0; 8];
        client.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"asked", b"answered"));
    }
}
