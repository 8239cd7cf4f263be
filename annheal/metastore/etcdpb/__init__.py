"""Generated wire messages of etcd; see protos/annheal/metastore/etcdpb/etcd.proto."""
