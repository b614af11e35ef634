//! Private Postgres servers for tests: one shared by all test processes of a run, or one of its own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where a server is; the superuser is `postgres`, without a password.
#[derive(Debug, Clone)]
pub struct Address {
    pub port: u16,
}

/// Returns the server that all tests of a run share; the first one that asks starts it.
///
/// Each process holds a shared lock as long as it lives. A watchdog beside the server takes that lock
/// alone when everybody has gone, also by a kill, and then stops the server and removes its files.
pub fn shared() -> &'static Address {
    static SHARED: OnceLock<(Address, File)> = OnceLock::new();
    let (address, _) = SHARED.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres");
        fs::create_dir_all(&place).expect("the target folder is writable");
        let users = lock_file(&place, "users");
        users.lock_shared().expect("a lock on the list of users");
        let turn = lock_file(&place, "turn");
        turn.lock().expect("a lock on the start");
        let note = place.join("port");
        if let Some(address) = running(&note) {
            return (address, users);
        }
        let server = Server::start();
        fs::write(&note, server.address.port.to_string()).expect("the port can be noted");
        watch(&place, &server);
        let address = server.address.clone();
        // From here on the watchdog ends it.
        std::mem::forget(server);
        (address, users)
    });
    address
}

fn lock_file(place: &Path, name: &str) -> File {
    let options = File::options().create(true).truncate(false).write(true).open(place.join(name));
    options.expect("a lock file can be made")
}

/// Returns the server that was noted, if it still answers.
fn running(note: &Path) -> Option<Address> {
    let port = fs::read_to_string(note).ok()?.trim().parse().ok()?;
    let address = Address { port };
    answers(&address).then_some(address)
}

fn answers(address: &Address) -> bool {
    let mut command = Command::new(binaries().join("pg_isready"));
    let command = command.args(["-q", "-h", "127.0.0.1", "-p", &address.port.to_string()]);
    command.status().is_ok_and(|status| status.success())
}

/// Leaves a process that stops the server once nobody holds the lock for some seconds.
fn watch(place: &Path, server: &Server) {
    const SCRIPT: &str = r#"
        idle=0
        while [ $idle -lt 3 ]; do
            sleep 1
            if flock -n -x "$0/users" true; then idle=$((idle + 1)); else idle=0; fi
            if [ $idle -eq 3 ]; then
                flock -x "$0/turn" sh -c '
                    flock -n -x "$0/users" true || exit 1
                    rm -f "$0/port"
                    kill -QUIT "$(head -1 "$1/data/postmaster.pid")"
                    rm -rf "$1"
                ' "$0" "$1" || idle=0
            fi
        done
    "#;
    let mut command = Command::new("setsid");
    command.args(["--fork", "sh", "-c", SCRIPT]).arg(place).arg(&server.folder);
    let started = quiet(&mut command).status();
    assert!(started.is_ok_and(|status| status.success()), "a watchdog for the server can start");
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Returns the folder with the newest server's programs.
fn binaries() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let folders = versions.map(|version| version.path().join("bin"));
        let mut folders: Vec<_> = folders.filter(|path| path.join("initdb").exists()).collect();
        folders.sort();
        folders.pop().expect("PostgreSQL is installed under /usr/lib/postgresql: it is needed here")
    })
}

/// A server of its own, stopped and removed at the end.
#[derive(Debug)]
pub struct Server {
    pub address: Address,
    pub folder: PathBuf,
    options: String,
}

impl Server {
    /// Makes and starts a server that does not wait for the disk.
    pub fn start() -> Self {
        Self::with("-c fsync=off -c synchronous_commit=off -c full_page_writes=off")
    }

    /// Makes and starts a server with these options.
    pub fn with(options: &str) -> Self {
        let server = Self::prepare(options);
        server.go();
        server
    }

    /// Makes a server with these options, for `go` to start.
    pub fn prepare(options: &str) -> Self {
        let name = format!("eventbus-pg-{}", uuid::Uuid::new_v4().simple());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a folder for the server");
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(&folder).status();
            assert!(owned.expect("chown runs").success(), "the user postgres owns its folder");
        }
        let port = free_port();
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} \
             -c max_connections=300 -c shared_buffers=64MB {options}",
            folder.display()
        );
        let server = Self { address: Address { port }, folder, options };
        let data = server.folder.join("data");
        let mut initdb = server.command("initdb");
        let initdb = initdb.arg("-D").arg(data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run(initdb);
        server
    }

    /// Returns a command that runs a program as a user who may run the server.
    pub fn command(&self, program: &str) -> Command {
        let own = binaries().join(program);
        let path = if own.exists() { own } else { program.into() };
        if !is_root() {
            let mut command = Command::new(path);
            command.current_dir(&self.folder);
            return command;
        }
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(path);
        // Its own folder is the one that the user may enter for certain.
        command.current_dir(&self.folder);
        command
    }

    /// Starts it where it was; what a kill left behind may take a moment to go away.
    pub fn go(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut start = self.command("pg_ctl");
        let log = self.folder.join("log");
        start.arg("-D").arg(self.folder.join("data")).arg("-l").arg(&log);
        start.args(["-w", "-t", "30", "-o", &self.options, "start"]);
        while !quiet(&mut start).status().is_ok_and(|status| status.success()) {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server does not start: {}", said());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills every process of it at once, as a crash does.
    pub fn kill(&self) {
        let note = fs::read_to_string(self.folder.join("data/postmaster.pid"));
        let pid = note.expect("it runs").lines().next().unwrap_or_default().to_owned();
        // Its children first, while they can be found by their parent.
        let children = Command::new("pgrep").args(["-P", &pid]).output();
        let children = children.map(|found| String::from_utf8_lossy(&found.stdout).into_owned());
        let children = children.unwrap_or_default();
        let mut kill = Command::new("kill");
        run(quiet(kill.arg("-9").arg(&pid)));
        for child in children.lines() {
            let _ = quiet(Command::new("kill").args(["-9", child])).status();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while answers(&self.address) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&self) {
        let mut stop = self.command("pg_ctl");
        stop.arg("-D").arg(self.folder.join("data")).args(["-m", "immediate", "-w", "stop"]);
        let _ = quiet(&mut stop).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| {
        let id = Command::new("id").arg("-u").output();
        id.is_ok_and(|id| id.stdout.trim_ascii() == b"0")
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

pub fn run(command: &mut Command) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let done = command.stderr(Stdio::null()).status();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.success(), "{command:?}: {done}");
}
