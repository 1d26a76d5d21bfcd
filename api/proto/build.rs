//! Generates the services from `proto/` without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["auth.proto", "agent.proto", "peer.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    Ok(())
}
