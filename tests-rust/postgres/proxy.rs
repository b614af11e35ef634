//! A proxy before a server that loses on demand what the server says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Address;

/// Everything passes.
pub(crate) const PASS: u8 = 0;
/// Notifications are lost, as behind a transaction pooler.
pub(crate) const NO_NOTIFICATIONS: u8 = 1;
/// The next answer to a committing statement is lost, and its connection with it.
pub(crate) const CUT: u8 = 2;

pub(crate) struct Proxy {
    pub(crate) address: Address,
    mode: Arc<AtomicU8>,
}

impl Proxy {
    pub(crate) async fn before(server: &Address, mode: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address { port: listener.local_addr().unwrap().port() };
        let mode = Arc::new(AtomicU8::new(mode));
        let (shared, port) = (Arc::clone(&mode), server.port);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, mode }
    }

    pub(crate) fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::Relaxed);
    }
}

async fn pass(client: TcpStream, server: TcpStream, mode: Arc<AtomicU8>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut head = [0; 5];
        while from_server.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; length as usize - 4];
            if from_server.read_exact(&mut body).await.is_err() {
                return;
            }
            match mode.load(Ordering::Relaxed) {
                NO_NOTIFICATIONS if head[0] == b'A' => continue,
                // The server has committed when it says that it is ready, not before.
                CUT if head[0] == b'Z' => {
                    mode.store(PASS, Ordering::Relaxed);
                    return;
                }
                // Nothing of the answer arrives.
                CUT if matches!(head[0], b'1' | b'2' | b'D' | b'C' | b'T') => continue,
                _ => {}
            }
            if to_client.write_all(&head).await.is_err()
                || to_client.write_all(&body).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
    }
}
