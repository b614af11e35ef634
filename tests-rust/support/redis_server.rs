//! A private Redis server for one test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use eventbus::config::{Endpoint, RedisConfig};

/// A server on a free loopback port; killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    pub port: u16,
    _directory: Directory,
}

#[derive(Debug)]
struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl RedisServer {
    /// Starts a server and waits until it serves.
    pub fn start() -> Self {
        // Between its choice and its use somebody else may take a port.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("an address").port();
            drop(free);
            let name = format!("eventbus-redis-{}-{port}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).expect("a directory");
            let child = spawn(port, &path);
            let mut server = Self { child, port, _directory: Directory(path) };
            if server.wait() {
                return server;
            }
        }
        panic!("redis-server ended five times");
    }

    /// Waits until it serves; whether it does, or has ended.
    fn wait(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.serves().unwrap_or(false) {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Whether this very server answers on its port, and has read its data.
    fn serves(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"INFO server\r\nPING\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let own = format!("process_id:{}\r\n", self.child.id());
        Ok(answer.contains(&own) && answer.contains("+PONG\r\n"))
    }

    /// Returns the configuration that reaches it.
    pub fn config(&self) -> RedisConfig {
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port: self.port };
        RedisConfig { endpoints: vec![endpoint], ..RedisConfig::default() }
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts a killed server again on its port.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, &self._directory.0);
        assert!(self.wait(), "redis-server ended: port {} is taken?", self.port);
    }
}

fn spawn(port: u16, path: &std::path::Path) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .arg("--dir")
        .arg(path)
        .args(["--appendonly", "yes", "--appendfsync", "no"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server cannot be started: install Debian's package redis-server")
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
