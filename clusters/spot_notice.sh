#!/usr/bin/env bash
# On an EC2 spot instance, two minutes before AWS takes it away, tell Ray: runs then save at once, and nothing new is
# placed here. Started with the node by clusters/aws.yaml, and ends with it.
metadata=http://169.254.169.254/latest
while sleep 5; do
  token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $metadata/api/token) || continue
  curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" $metadata/meta-data/spot/instance-action && break
done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'spot instance is taken away' \
  --deadline-remaining-seconds 110
