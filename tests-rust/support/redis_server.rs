//! A private Redis server for one test.

use std::net::TcpListener;
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
    /// Starts a server without persistence and waits until it answers.
    pub fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let path =
            std::env::temp_dir().join(format!("eventbus-redis-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        let child = spawn(port, &path);
        let server = Self { child, port, _directory: Directory(path) };
        server.wait();
        server
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
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
        self.wait();
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
