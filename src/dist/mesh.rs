//! How ranks find each other: rank 0 listens, the others come with two connections each, one for numbers and one for signs of life; then
//! every two of them are connected.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::env::Place;
use crate::error::{Error, Result};
use crate::stop;

/// What a rank waits for the others at the start. A node that is still pulling its image takes minutes.
const PATIENCE: Duration = Duration::from_secs(900);
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// For one who says nothing after connecting: no rank of ours.
const HELLO: Duration = Duration::from_secs(10);
/// Bytes of a frame that is no numbers.
const MOST: u32 = 1 << 20;
const MAGIC: &str = "rlvr ranks 1";

/// Connections to all others.
pub struct Joined {
    /// By rank; none to oneself.
    pub data: Vec<Option<TcpStream>>,
    /// From rank 0 to every other, from any other to rank 0.
    pub control: Vec<(usize, TcpStream)>,
    /// Names of the hosts, by rank.
    pub hosts: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    magic: String,
    version: String,
    job: String,
    rank: usize,
    size: usize,
    host: String,
    /// Where this rank listens for those above it.
    port: u16,
    control: bool,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    /// Address, port and host of each rank.
    Welcome(Vec<(IpAddr, u16, String)>),
    Refused(String),
}

/// The name of this machine.
pub fn host_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map_or_else(|| "this host".into(), |name| name.trim().to_string())
}

/// A value, its length first.
pub fn send<T: Serialize>(stream: &mut TcpStream, value: &T) -> std::io::Result<()> {
    let mut bytes = vec![0; 4];
    ciborium::into_writer(value, &mut bytes).map_err(std::io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).map_err(std::io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&bytes)
}

/// What [`send`] sent.
pub fn receive<T: DeserializeOwned>(stream: &mut TcpStream) -> std::io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MOST {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "no rank of rlvr"));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    ciborium::from_reader(bytes.as_slice()).map_err(std::io::Error::other)
}

/// Meets the other ranks.
///
/// # Errors
/// Rank 0 cannot listen, or cannot be reached; ranks of another job, version or number; not all came in time.
pub fn join(place: &Place) -> Result<Joined> {
    let until = Instant::now() + PATIENCE;
    let any = if is_loopback(&place.address) { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    match place.rank {
        0 => receive_all(place, SocketAddr::from((any, place.port)), until),
        _ => go(place, SocketAddr::from((any, 0)), until),
    }
}

/// No place of a run: how often ranks look while they wait is no two times the same.
fn unless_asked() -> Result<()> {
    if stop::is_asked() { Err(Error::Stopped) } else { Ok(()) }
}

fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn at(place: &Place) -> String {
    format!("{}:{}", place.address, place.port)
}

impl Hello {
    fn of(place: &Place, port: u16, control: bool) -> Self {
        Self {
            magic: MAGIC.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            job: place.job.clone(),
            rank: place.rank,
            size: place.size,
            host: host_name(),
            port,
            control,
        }
    }

    /// Why this one is none of ours.
    fn misfit(&self, place: &Place) -> Option<String> {
        let version = env!("CARGO_PKG_VERSION");
        if self.version != version {
            return Some(format!("rank 0 is rlvr {version}, this is {}", self.version));
        }
        if self.job != place.job {
            return Some("rank 0 belongs to another job: give each its own MASTER_PORT".into());
        }
        if self.size != place.size || !(1..place.size).contains(&self.rank) {
            return Some(format!(
                "rank {} of {} is none of the {} of rank 0",
                self.rank, self.size, place.size
            ));
        }
        None
    }
}

/// Rank 0's side.
fn receive_all(place: &Place, listen: SocketAddr, until: Instant) -> Result<Joined> {
    let busy = |error: std::io::Error| {
        let fix = "Set MASTER_PORT to one that is free, the same for all ranks";
        Error::input(at(place), format!("rank 0 cannot listen there: {error}"), fix)
    };
    let listener = TcpListener::bind(listen).map_err(busy)?;
    listener.set_nonblocking(true).map_err(busy)?;
    let mut data: Vec<Option<(Hello, TcpStream)>> = (0..place.size).map(|_| None).collect();
    let mut control: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
    let missing = |data: &[Option<_>], control: &[Option<_>]| -> Vec<usize> {
        (1..place.size).filter(|rank| data[*rank].is_none() || control[*rank].is_none()).collect()
    };
    while !missing(&data, &control).is_empty() {
        unless_asked()?;
        let (mut stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let missing = missing(&data, &control);
                if Instant::now() > until {
                    return Err(late(place, &format!("ranks {missing:?} did not come")));
                }
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(error) => return Err(busy(error)),
        };
        // Whoever is no rank is let go.
        let Ok(hello) = greeted(&mut stream) else { continue };
        if let Some(text) = hello.misfit(place) {
            let _ = send(&mut stream, &Answer::Refused(text));
            continue;
        }
        let (rank, control_too) = (hello.rank, hello.control);
        let taken = if control_too { control[rank].is_some() } else { data[rank].is_some() };
        if taken {
            let _ = send(&mut stream, &Answer::Refused(format!("there is a rank {rank} already")));
            continue;
        }
        match control_too {
            true => control[rank] = Some(stream),
            false => data[rank] = Some((hello, stream)),
        }
    }
    let mut all = vec![(IpAddr::V4(Ipv4Addr::LOCALHOST), place.port, host_name())];
    for (hello, stream) in data.iter().flatten() {
        let from = stream.peer_addr().map_err(|error| lost(hello.rank, &error))?;
        all.push((from.ip(), hello.port, hello.host.clone()));
    }
    let hosts = all.iter().map(|(.., host)| host.clone()).collect();
    let welcome = Answer::Welcome(all);
    let mut streams = Vec::with_capacity(place.size);
    for (rank, met) in data.into_iter().enumerate() {
        let mut stream = met.map(|(_, stream)| stream);
        if let Some(stream) = &mut stream {
            send(stream, &welcome).map_err(|error| lost(rank, &error))?;
        }
        streams.push(stream);
    }
    let control =
        control.into_iter().enumerate().filter_map(|(rank, stream)| Some((rank, stream?))).collect();
    Ok(Joined { data: streams, control, hosts })
}

/// Who came.
fn greeted(stream: &mut TcpStream) -> std::io::Result<Hello> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO))?;
    let hello: Hello = receive(stream)?;
    stream.set_read_timeout(None)?;
    match hello.magic == MAGIC {
        true => Ok(hello),
        false => Err(std::io::Error::new(ErrorKind::InvalidData, "no rank of rlvr")),
    }
}

fn late(place: &Place, what: &str) -> Error {
    let fix = "See whether every rank was started, and can reach that address";
    Error::input(at(place), format!("{what} within {} s", PATIENCE.as_secs()), fix)
}

fn lost(rank: usize, error: &std::io::Error) -> Error {
    Error::RankLost { problem: format!("rank {rank} was lost while the ranks met: {error}") }
}

/// Any other rank's side.
fn go(place: &Place, listen: SocketAddr, until: Instant) -> Result<Joined> {
    let own =
        |error: std::io::Error| Error::Compute(format!("rank {} cannot listen: {error}", place.rank).into());
    let listener = TcpListener::bind(listen).map_err(own)?;
    let port = listener.local_addr().map_err(own)?.port();
    let (mut first, address) = connected(place, &Hello::of(place, port, false), until)?;
    let (control, _) = connected(place, &Hello::of(place, port, true), until)?;
    let all = match receive(&mut first).map_err(|error| lost(0, &error))? {
        Answer::Welcome(all) => all,
        Answer::Refused(text) => return Err(Error::input(at(place), text, "See how the ranks were started")),
    };
    let hosts = all.iter().map(|(.., host)| host.clone()).collect();
    let mut data: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
    data[0] = Some(first);
    for (rank, (ip, port, _)) in all.iter().enumerate().take(place.rank).skip(1) {
        // A rank that runs beside rank 0 is known to it by an address that others cannot reach.
        let ip = if ip.is_loopback() { address.ip() } else { *ip };
        let mut stream = TcpStream::connect((ip, *port)).map_err(|error| lost(rank, &error))?;
        stream.set_nodelay(true).map_err(|error| lost(rank, &error))?;
        send(&mut stream, &Hello::of(place, 0, false)).map_err(|error| lost(rank, &error))?;
        data[rank] = Some(stream);
    }
    while data.iter().skip(place.rank + 1).any(Option::is_none) {
        let (mut stream, _) = listener.accept().map_err(own)?;
        let Ok(hello) = greeted(&mut stream) else { continue };
        if hello.job == place.job && hello.size == place.size && hello.rank > place.rank {
            let rank = hello.rank;
            data[rank] = Some(stream);
        }
    }
    Ok(Joined { data, control: vec![(0, control)], hosts })
}

/// A connection to rank 0, and its address.
fn connected(place: &Place, hello: &Hello, until: Instant) -> Result<(TcpStream, SocketAddr)> {
    loop {
        unless_asked()?;
        let addresses = (place.address.as_str(), place.port).to_socket_addrs();
        let tried = addresses.and_then(|all| {
            let mut failed = std::io::Error::new(ErrorKind::NotFound, "no address");
            for address in all {
                match TcpStream::connect_timeout(&address, HELLO) {
                    Ok(stream) => return Ok((stream, address)),
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        });
        let greeted = tried.and_then(|(mut stream, address)| {
            stream.set_nodelay(true)?;
            send(&mut stream, hello)?;
            Ok((stream, address))
        });
        match greeted {
            Ok(connected) => return Ok(connected),
            Err(error) if Instant::now() > until => {
                return Err(late(place, &format!("rank {} could not reach rank 0 ({error})", place.rank)));
            }
            Err(_) => std::thread::sleep(BETWEEN_TRIES),
        }
    }
}
