//! The way between the hosts: what may be wrong with one that carries small packets and not large ones, in
//! words.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use host_kit::error::chain;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockopt, setsockopt, sockopt};

use crate::frames::TransportError;

/// How long what a session sends may stay without a TCP acknowledgement. Longer than anything but a broken
/// path takes.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A stream that sends and hears nothing for so long breaks. Without this a path that loses the large
/// packets, while heartbeats pass, would keep a first copy waiting for a quarter of an hour.
pub(crate) fn limit_silence(stream: &TcpStream) {
    let millis = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    // Without it the session takes longer to end.
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &millis);
}

/// Why `stream` failed, for people; `sent`: so many bytes were to go out in one piece.
pub(crate) fn explain(error: &TransportError, stream: &TcpStream, sent: Option<usize>) -> String {
    let mut text = chain(error);
    if matches!(error, TransportError::Late) {
        text.push_str(&hint(stream, sent).unwrap_or_default());
    }
    text
}

fn hint(stream: &TcpStream, sent: Option<usize>) -> Option<String> {
    let segment = getsockopt(stream, sockopt::TcpMaxSeg).ok()?;
    let (here, there) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let interface = interface_of(here.ip())?;
    let mtu = mtu_of(&interface, stream)?;
    let what = sent.map_or_else(|| "what was sent".to_owned(), |bytes| format!("the {bytes} bytes that were sent"));
    // What an ICMP echo of the largest size carries.
    let echo = mtu.saturating_sub(if here.is_ipv4() { 28 } else { 48 });
    let to = host(there);
    Some(format!(
        " ({what} left in packets with up to {segment} bytes of it through {interface}, whose MTU is {mtu}: perhaps the way to \
         {to} does not carry such large ones, see ping -M do -s {echo} {to})"
    ))
}

/// The address alone, as other programs want it.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

/// The interface that has an address.
fn interface_of(ip: IpAddr) -> Option<String> {
    Some(getifaddrs().ok()?.find(|found| found.address.and_then(ip_of) == Some(ip))?.interface_name)
}

/// Its MTU; or, where /sys shows another network namespace than this process is in, what TCP takes for it.
fn mtu_of(interface: &str, stream: &TcpStream) -> Option<u64> {
    // Not a path of somebody's choice: the name is the kernel's.
    let file = std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu"));
    let shown = file.ok().and_then(|text| text.trim().parse().ok());
    shown.or_else(|| getsockopt(stream, sockopt::IpMtu).ok()?.try_into().ok())
}

fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    address.family()?;
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_stream_that_is_late_tells_what_it_sent_and_through_what() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mtu: u64 = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap().trim().parse().unwrap();
        let text = explain(&TransportError::Late, &stream, Some(4321));
        for part in ["no answer in time (the 4321 bytes", &format!("through lo, whose MTU is {mtu}"), "ping -M do -s"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert_eq!(explain(&TransportError::Closed, &stream, None), "the peer closed the connection");
    }

    #[test]
    fn a_session_does_not_wait_for_acknowledgements_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        limit_silence(&stream);
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(), 30_000);
    }
}
