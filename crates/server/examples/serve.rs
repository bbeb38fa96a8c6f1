//! An API server alone, without a node: for trying kubectl against it. `serve DATA_DIR [PORT]`.

use mainstay_server::{ServerConfig, start};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data_dir = arguments.next().ok_or("usage: serve DATA_DIR [PORT]")?.into();
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let config = ServerConfig {
        data_dir,
        listen: ([127, 0, 0, 1], port).into(),
        advertise: None,
        service_cidr: "10.96.0.0/16".into(),
        cluster_cidr: "10.244.0.0/16".into(),
        cluster_domain: "cluster.local".into(),
        pod_network: "routes".into(),
        etcd: None,
        seal: None,
        node: Some(mainstay_server::LocalNode {
            name: "node".into(),
            addresses: vec![[127, 0, 0, 1].into()],
            pods: None,
        }),
        cluster: mainstay_server::identity::Expected::default(),
        new_keys: false,
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let began = std::time::Instant::now();
        let running = start(config).await?;
        println!(
            "https://{} ready in {:?}; kubeconfig {}",
            running.addr,
            began.elapsed(),
            running.admin.path.display()
        );
        std::future::pending::<()>().await;
        running.shutdown().await;
        Ok(())
    })
}
