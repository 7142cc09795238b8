#!/usr/bin/env bash
# Lets only the hosts of a cluster reach the ports of Ray and of its runs on this host, by nftables; as root:
#
#   clusters/close_ports.sh 192.0.2.10 192.0.2.11 192.0.2.12    # addresses of all hosts of the cluster, on each of them
#   clusters/close_ports.sh                                     # opens them again
#
# For machines that strangers reach, where nothing else keeps them out. Ray and runs take any port above 1023, so all of
# those are closed to others, but for OPEN, such as OPEN=2049,8080 for NFS and a page of yours. Ports below 1024, SSH
# above all, stay as they are, and so do connections that this host begins, and UDP. The table is this script's own, and
# is gone after a restart of the machine.
set -eu
fresh='add table inet raypaml; delete table inet raypaml'   # also where it was not there
[ $# != 0 ] || exec nft "$fresh"
open=${OPEN:+"tcp dport { $OPEN } accept"}
hosts=
for host in "$@"; do
  case $host in
    *:*) hosts+="ip6 saddr $host accept; " ;;
    *) hosts+="ip saddr $host accept; " ;;
  esac
done
nft -f - <<END
$fresh
table inet raypaml {
  chain input {
    type filter hook input priority -10; policy accept;
    iif lo accept
    ct state established,related accept
    $hosts
    $open
    tcp dport 1024-65535 drop
  }
}
END
