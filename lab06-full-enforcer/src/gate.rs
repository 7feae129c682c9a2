//! The daemon's connections: so many at a time, and each for so long only, whatever its client does or leaves undone.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        UnixListener, UnixStream,
        unix::{SocketAddr, UCred},
    },
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// How many connections are served at a time. Others wait where the kernel keeps them.
pub const MAX_CONNECTIONS: usize = 64;

/// How long a client may let the daemon wait, all in all. What the daemon itself takes to answer is none of that.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A listening socket that lets so many in.
pub struct Gate {
    listener: UnixListener,
    places: Arc<Semaphore>,
}

impl Gate {
    /// Of a socket that listens.
    pub fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }
}

impl Listener for Gate {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, PATIENCE, place), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it has kept the daemon waiting for too long.
pub struct Connection {
    stream: UnixStream,
    end: Pin<Box<Sleep>>,
    /// When the last bytes of what may be a whole request came, if they have not been answered yet.
    asked: Option<Instant>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(stream: UnixStream, patience: Duration, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            end: Box::pin(sleep(patience)),
            asked: None,
            _place: place,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<UCred> {
        self.stream.peer_cred()
    }

    /// What the socket says, unless it has to be waited for and the time is over.
    fn in_time<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_pending() && self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > filled {
            self.asked = Some(Instant::now());
        }
        self.in_time(context, poll)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(asked) = self.asked.take() {
            let end = self.end.deadline() + asked.elapsed();
            self.end.as_mut().reset(end);
        }
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read as _, Write as _},
        os::unix::net::UnixStream as Client,
        thread,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// More than a socket keeps.
    const ANSWER: usize = 4 << 20;

    /// A connection that a request has come over, of which the daemon has made an answer for longer than it has patience.
    async fn asked() -> (Client, Connection) {
        let (mut client, daemon) = Client::pair().unwrap();
        daemon.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(UnixStream::from_std(daemon).unwrap(), PATIENCE, None);
        client.write_all(b"?").unwrap();
        poll_fn(|context| Pin::new(&mut connection).poll_read(context, &mut ReadBuf::new(&mut [0])))
            .await
            .unwrap();
        thread::sleep(PATIENCE + Duration::from_millis(100));
        (client, connection)
    }

    async fn answer(connection: &mut Connection) -> io::Result<()> {
        let mut left = ANSWER;
        while left > 0 {
            let answer = vec![0; left];
            left -= poll_fn(|context| Pin::new(&mut *connection).poll_write(context, &answer)).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_time_that_an_answer_takes_is_not_the_clients() {
        let (mut client, mut connection) = asked().await;
        let taking = thread::spawn(move || client.read_exact(&mut vec![0; ANSWER]));
        answer(&mut connection).await.unwrap();
        taking.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_given_up() {
        let (_client, mut connection) = asked().await;
        let given_up = answer(&mut connection).await.unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    }
}
