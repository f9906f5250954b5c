//! Generates the internal gRPC code from `schema/`, without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let files = protox::compile(["schema/peer.proto"], ["schema"])?;
    tonic_prost_build::configure().bytes(".saturn.peer.v1").compile_fds(files)?;
    Ok(())
}
