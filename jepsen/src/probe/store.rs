//! Compaction, transactions, rights.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest, Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    auth_client::AuthClient,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};
use tonic::{Code, Status};

use super::{
    Setup,
    client::{Client, put_op, range_of},
};

const STOP_LIMIT: Duration = Duration::from_secs(30);

pub async fn compacted_reads(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let first = client.put("k", "1").await?;
    let compacted = client.put("other", "1").await?;
    client.put("k", "2").await?;
    client.put("k", "3").await?;
    client.compact(compacted).await?;

    let at = |revision| RangeRequest { revision, ..range_of("k") };
    let kvs = client.range(at(compacted)).await?.kvs;
    ensure!(kvs.iter().map(|kv| kv.value.as_ref()).eq([b"1"]), "at the compacted revision k is {kvs:?}");

    let is_refused = |answer: Result<(), Status>| match answer {
        Err(status) if status.message().contains("required revision has been compacted") => Ok(()),
        other => Err(anyhow::anyhow!("a read below the compacted revision was answered {other:?}")),
    };
    is_refused(client.range(at(first)).await.map(drop))?;
    let range = RequestOp { request: Some(Request::RequestRange(at(first))) };
    let reads = TxnRequest { success: vec![range.clone()], ..TxnRequest::default() };
    is_refused(client.txn(reads).await.map(drop))?;
    let writes = TxnRequest { success: vec![range, put_op("new", "1".into())], ..TxnRequest::default() };
    is_refused(client.txn(writes).await.map(drop))
}

pub async fn compacted_revision(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&[]).await?;
    let client = Client::of(&node);
    client.put("living", "1").await?;
    client.put("k", "1").await?;
    let deleted = client.delete("k").await?;
    client.compact(deleted).await?;
    ensure!(node.terminate(STOP_LIMIT).await?.success(), "a clean stop gave an error");
    node.start().await?;
    let revision = Client::of(&node).revision().await?;
    ensure!(revision == deleted, "the store was at revision {deleted}, and is at {revision} after a restart");
    Ok(())
}

pub async fn nested_compare(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let is_absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: "k".into(),
        target_union: Some(TargetUnion::Version(0)),
        ..Compare::default()
    };
    let nested = TxnRequest {
        compare: vec![is_absent],
        success: vec![put_op("was-absent", "1".into())],
        failure: vec![put_op("was-there", "1".into())],
    };
    let nested = RequestOp { request: Some(Request::RequestTxn(nested)) };
    let outer = TxnRequest { success: vec![put_op("k", "1".into()), nested], ..TxnRequest::default() };
    let responses = client.txn(outer).await?.responses;
    let nested = responses.last().and_then(|response| response.response.as_ref());
    ensure!(
        matches!(nested, Some(Response::ResponseTxn(nested)) if nested.succeeded),
        "a nested comparison saw what the outer transaction had put",
    );
    Ok(())
}

pub async fn rights(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let mut auth = AuthClient::new(client.channel());
    for name in ["root", "guest"] {
        auth.user_add(AuthUserAddRequest { name: name.into(), password: "p".into(), ..Default::default() }).await?;
    }
    auth.role_add(AuthRoleAddRequest { name: "few".into() }).await?;
    let perm = proto::authpb::Permission {
        perm_type: proto::authpb::permission::Type::Readwrite.into(),
        key: "own".into(),
        ..Default::default()
    };
    let grant = AuthRoleGrantPermissionRequest { name: "few".into(), perm: Some(perm) };
    auth.role_grant_permission(grant).await?;
    for (user, role) in [("root", "root"), ("guest", "few")] {
        auth.user_grant_role(AuthUserGrantRoleRequest { user: user.into(), role: role.into() }).await?;
    }
    auth.auth_enable(AuthEnableRequest {}).await?;
    let authenticate = AuthenticateRequest { name: "guest".into(), password: "p".into() };
    let token = auth.authenticate(authenticate).await?.into_inner().token;
    let put = async |key: &'static str| -> Result<Result<(), Status>> {
        let mut request = tonic::Request::new(PutRequest { key: key.into(), ..PutRequest::default() });
        request.metadata_mut().insert("token", token.parse()?);
        Ok(client.kv().put(request).await.map(drop))
    };
    put("own").await??;
    let answer = put("foreign").await?;
    ensure!(
        answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied),
        "a user without a right put a key: {answer:?}"
    );
    Ok(())
}
