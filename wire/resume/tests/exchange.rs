//! What each end comes to, and what a change of anything does to it.

#![expect(clippy::unwrap_used, reason = "a test")]

use wayleave_resume_wire::exchange::{
    Asked, Attempt, Ephemeral, StreamSecret, agent_statement, client_statement, proof_statement,
    refusal_statement,
};
use wayleave_resume_wire::{
    AgentHello, Challenge, ClientHello, Proof, Reattach, Refusal, Refused, Signed, StreamId,
};

fn signed(name: &str) -> Signed {
    Signed { certificate: name.as_bytes().to_vec(), signature: b"signature".to_vec() }
}

struct Ends {
    client: Ephemeral,
    agent: Ephemeral,
    client_hello: ClientHello,
    agent_hello: AgentHello,
}

fn ends() -> Ends {
    let (client, agent) = (Ephemeral::new([1; 32]).unwrap(), Ephemeral::new([2; 32]).unwrap());
    let client_hello = ClientHello { share: client.share(), signed: signed("alice") };
    let agent_hello = AgentHello {
        share: agent.share(),
        stream: StreamId([7; 16]),
        max_detached_ms: 300_000,
        proxies: vec!["a:1".into()],
        signed: signed("web-1"),
    };
    Ends { client, agent, client_hello, agent_hello }
}

fn secret_of_client(ends: &Ends) -> StreamSecret {
    ends.client.secret(&ends.agent_hello.share, &ends.client_hello, &ends.agent_hello).unwrap()
}

fn attempt() -> Attempt {
    let reattach = Reattach { stream: StreamId([7; 16]), nonce: [3; 32], received: 5 };
    Attempt::new(&reattach, [4; 32])
}

#[test]
fn both_ends_come_to_the_same_secret() {
    let ends = ends();
    let client = secret_of_client(&ends);
    let agent = ends.agent.secret(&ends.client_hello.share, &ends.client_hello, &ends.agent_hello).unwrap();
    assert!(agent.is_client_mac(&client.client_mac(&attempt()), &attempt()));
    assert!(client.is_agent_mac(&agent.agent_mac(&attempt(), 9), &attempt(), 9));
}

#[test]
fn o_a_proxy_that_sees_both_hellos_does_not_come_to_the_secret() {
    let ends = ends();
    let real = secret_of_client(&ends).client_mac(&attempt());
    let proxy = Ephemeral::new([9; 32]).unwrap();
    for share in [&ends.client_hello.share, &ends.agent_hello.share] {
        let guess = proxy.secret(share, &ends.client_hello, &ends.agent_hello).unwrap();
        assert!(!guess.is_client_mac(&real, &attempt()));
    }
}

#[test]
fn o_whatever_a_proxy_changes_in_a_hello_is_signed_or_changes_the_secret() {
    let ends = ends();
    let real = agent_statement(&ends.client_hello, &ends.agent_hello);
    let mut changes: Vec<(ClientHello, AgentHello)> = Vec::new();
    let mut change = |edit: &dyn Fn(&mut ClientHello, &mut AgentHello)| {
        let (mut client, mut agent) = (ends.client_hello.clone(), ends.agent_hello.clone());
        edit(&mut client, &mut agent);
        changes.push((client, agent));
    };
    change(&|client, _| client.share[0] ^= 1);
    change(&|client, _| client.signed.certificate.push(0));
    change(&|client, _| client.signed.signature.push(0));
    change(&|_, agent| agent.share[0] ^= 1);
    change(&|_, agent| agent.stream.0[0] ^= 1);
    change(&|_, agent| agent.max_detached_ms += 1);
    change(&|_, agent| agent.proxies.clear());
    change(&|_, agent| agent.signed.certificate.push(0));
    let secret = secret_of_client(&ends).client_mac(&attempt());
    for (client, agent) in changes {
        assert_ne!(agent_statement(&client, &agent), real);
        let other = ends.client.secret(&ends.agent_hello.share, &client, &agent).unwrap();
        assert!(!other.is_client_mac(&secret, &attempt()));
    }
}

#[test]
fn o_a_share_that_gives_no_secret_is_refused() {
    let ends = ends();
    assert!(ends.client.secret(&[0; 32], &ends.client_hello, &ends.agent_hello).is_err());
}

#[test]
fn o_a_proof_is_good_for_one_attempt_only() {
    let secret = secret_of_client(&ends());
    let proof = secret.client_mac(&attempt());
    let others = [
        Attempt { agent_nonce: [5; 32], ..attempt() },
        Attempt { client_nonce: [5; 32], ..attempt() },
        Attempt { client_received: 6, ..attempt() },
        Attempt { stream: StreamId([8; 16]), ..attempt() },
    ];
    for other in others {
        assert!(!secret.is_client_mac(&proof, &other));
        assert_ne!(proof_statement(&other, b"alice"), proof_statement(&attempt(), b"alice"));
    }
    assert!(!secret.is_agent_mac(&proof, &attempt(), 5), "the client's is not the agent's");
    let agent = secret.agent_mac(&attempt(), 9);
    assert!(!secret.is_agent_mac(&agent, &attempt(), 10));
}

#[test]
fn o_a_refusal_is_good_for_what_was_asked_only() {
    let reattach = Reattach { stream: StreamId([7; 16]), nonce: [3; 32], received: 5 };
    let (challenge, proof) = (Challenge { nonce: [4; 32] }, Proof { mac: [5; 32], signed: signed("alice") });
    let said = Refused::new(Refusal::Denied, "no");
    let statement = |reattach: &Reattach, challenge: &Challenge, proof: &Proof, said: &Refused| {
        refusal_statement(&Asked { reattach, proved: Some((challenge, proof)) }, said, b"web-1")
    };
    let real = statement(&reattach, &challenge, &proof, &said);
    let others = [
        statement(&Reattach { stream: StreamId([8; 16]), ..reattach }, &challenge, &proof, &said),
        statement(&Reattach { nonce: [4; 32], ..reattach }, &challenge, &proof, &said),
        statement(&Reattach { received: 6, ..reattach }, &challenge, &proof, &said),
        statement(&reattach, &Challenge { nonce: [5; 32] }, &proof, &said),
        statement(&reattach, &challenge, &Proof { mac: [6; 32], ..proof.clone() }, &said),
        statement(&reattach, &challenge, &Proof { signed: signed("mallory"), ..proof.clone() }, &said),
        statement(&reattach, &challenge, &proof, &Refused::new(Refusal::Unknown, "no")),
        statement(&reattach, &challenge, &proof, &Refused::new(Refusal::Denied, "non")),
        refusal_statement(&Asked { reattach: &reattach, proved: None }, &said, b"web-1"),
        refusal_statement(
            &Asked { reattach: &reattach, proved: Some((&challenge, &proof)) },
            &said,
            b"web-2",
        ),
    ];
    for other in others {
        assert_ne!(other, real);
    }
}

#[test]
fn o_no_statement_is_another_kind_of_statement_or_one_of_tls() {
    let ends = ends();
    let statements = [
        client_statement(&ends.client_hello.share, b"alice"),
        agent_statement(&ends.client_hello, &ends.agent_hello),
        proof_statement(&attempt(), b"alice"),
        refusal_statement(
            &Asked {
                reattach: &Reattach { stream: StreamId([7; 16]), nonce: [3; 32], received: 5 },
                proved: None,
            },
            &Refused::new(Refusal::Unknown, "no"),
            b"web-1",
        ),
    ];
    for statement in &statements {
        assert!(statement.starts_with(&[b' '; 64]) && !statement[64..].starts_with(b"TLS"));
        let context: Vec<u8> = statement[64..].iter().copied().take_while(|byte| *byte != 0).collect();
        let same = statements.iter().filter(|other| other[64..].starts_with(&context)).count();
        assert_eq!(same, 1);
    }
}

/// Of what can be printed; found before [`Unprintable`], which is behind one more reference.
trait Printable {
    fn is_printable(&self) -> bool {
        true
    }
}

impl<T: std::fmt::Debug> Printable for T {}

trait Unprintable {
    fn is_printable(&self) -> bool {
        false
    }
}

impl<T> Unprintable for &T {}

#[test]
fn m_neither_a_secret_nor_a_private_share_can_be_printed() {
    let ends = ends();
    let (secret, client, public) = (&secret_of_client(&ends), &ends.client, &attempt());
    assert!(public.is_printable());
    assert!(!secret.is_printable());
    assert!(!client.is_printable());
}
