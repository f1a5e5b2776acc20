// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
)

// zoneLabel is the label by which Kubernetes knows in which zone a node is.
const zoneLabel = "topology.kubernetes.io/zone"

// passwordFile is written by k3s when it has registered its node for the first time.
const passwordFile = "/etc/rancher/node/password"

// mayLabel reports whether our file, which has an old content, may give the node a zone. Whoever has
// given it one stays right: in another file, on the command line, or by kubectl label, which can't be
// seen from here. So a node that was registered without a zone of ours gets none. The kubelet writes
// the one that it is given over any other each time it starts (updateDefaultLabels in its source).
func mayLabel(root string, old []byte) bool {
	if _, err := os.Stat(filepath.Join(root, passwordFile)); err == nil && !bytes.Contains(old, []byte(zoneLabel+"=")) {
		return false
	}
	others, err := readSettings(root, false)
	return err == nil && !strings.Contains(others.Values["node-label"].Text, zoneLabel+"=")
}
