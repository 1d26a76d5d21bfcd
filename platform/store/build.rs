//! Generates the client of etcd from `proto/` without a protoc binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto/etcd.proto");
    Ok(())
}
