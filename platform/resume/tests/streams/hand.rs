//! A client that knows a stream's secret and speaks with the agent by hand, to say what a genuine client does not.

use crate::refused::{PATIENCE, read_frame, write_frame};
use crate::world::World;
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use wayleave_keystore::Credentials;
use wayleave_net::BoxStream;
use wayleave_resume_wire::exchange::{Attempt, Ephemeral, StreamSecret, client_statement, proof_statement};
use wayleave_resume_wire::{ClientHello, Frame, Proof, Reattach, Refused, Signed, StreamId};
use wayleave_runtime::random_bytes;

/// A stream that can be resumed, at its client.
pub(crate) struct Hand {
    pub(crate) stream: StreamId,
    pub(crate) secret: StreamSecret,
    /// What carries it first; the agent sees a loss when it is dropped.
    pub(crate) connection: BoxStream,
}

pub(crate) fn signed(credentials: &Credentials, build: impl FnOnce(&[u8]) -> Vec<u8>) -> Signed {
    let signed = credentials.sign(build).unwrap();
    Signed { certificate: signed.certificate, signature: signed.signature }
}

impl Hand {
    /// Begins a stream; somebody must serve it.
    pub(crate) async fn begin(world: &World, credentials: &Credentials) -> Self {
        let mut connection = world.raw_new();
        let ephemeral = Ephemeral::new(random_bytes()).unwrap();
        let share = ephemeral.share();
        let hello = ClientHello { share, signed: signed(credentials, |own| client_statement(&share, own)) };
        write_frame(&mut connection, &Frame::ClientHello(hello.clone())).await;
        let Frame::AgentHello(answer) = read_frame(&mut connection).await else { panic!("no hello") };
        let secret = ephemeral.secret(&answer.share, &hello, &answer).unwrap();
        Self { stream: answer.stream, secret, connection }
    }

    /// What asks for the stream, having received so much of it.
    pub(crate) fn reattach(&self, received: u64) -> Reattach {
        Reattach { stream: self.stream, nonce: random_bytes(), received }
    }

    pub(crate) fn proof(&self, attempt: &Attempt, credentials: &Credentials) -> Proof {
        let signed = signed(credentials, |own| proof_statement(attempt, own));
        Proof { mac: self.secret.client_mac(attempt), signed }
    }

    /// Asks for the stream back with a proof that may be changed, and gives the connection with the answer.
    pub(crate) async fn come_back(
        &self,
        world: &World,
        credentials: &Credentials,
        change: impl FnOnce(&mut Proof),
    ) -> (BoxStream, Frame) {
        let mut connection = world.raw();
        let attempt = challenged(&mut connection, self.reattach(0)).await;
        let mut proof = self.proof(&attempt, credentials);
        change(&mut proof);
        write_frame(&mut connection, &Frame::Proof(proof)).await;
        let answer = read_frame(&mut connection).await;
        (connection, answer)
    }

    /// The same, and it must be refused.
    pub(crate) async fn refused(
        &self,
        world: &World,
        credentials: &Credentials,
        change: impl FnOnce(&mut Proof),
    ) -> Refused {
        match self.come_back(world, credentials, change).await.1 {
            Frame::Refused(refused) => refused,
            other => panic!("{other:?}"),
        }
    }
}

/// Asks for a stream and gives what is to be proved.
pub(crate) async fn challenged(connection: &mut BoxStream, reattach: Reattach) -> Attempt {
    write_frame(connection, &Frame::Reattach(reattach)).await;
    let Frame::Challenge(challenge) = read_frame(connection).await else { panic!("no challenge") };
    Attempt::new(&reattach, challenge.nonce)
}

pub(crate) fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes.to_vec()
}

/// What still comes until the agent closes the connection.
pub(crate) async fn rest_of(connection: &mut BoxStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut rest)).await;
    let _end_or_reset = reading.expect("the agent closes it");
    rest
}
