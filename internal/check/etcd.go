// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
)

// etcdArgs checks that k3s is told the timings of etcd that the configuration wants.
func (c *k3sChecks) etcdArgs(cfg config.Config) {
	args := k3s.EtcdArgs(cfg.K3s.Etcd)
	v := c.settings.Values["etcd-arg"]
	if args == nil || v.Has(args...) {
		return
	}
	entry := fmt.Sprintf("etcd-arg+: [%s]", strings.Join(args, ", "))
	var advice string
	switch {
	case strings.HasSuffix(v.From, ".service"):
		advice = fmt.Sprintf("write --etcd-arg=%s into %s", strings.Join(args, " --etcd-arg="), v.From)
	case v.From != "":
		advice = fmt.Sprintf("write into %s: %s, with its other entries", v.From, entry)
	default:
		advice = fmt.Sprintf("write into %s/meshd.yaml: %s; or set k3s.write-config to true", filepath.Dir(k3s.DropIn), entry)
	}
	c.add(Warning, fmt.Sprintf("k3s.etcd is %s, but etcd-arg is %q, without %s", cfg.K3s.Etcd, v.Text, strings.Join(args, " and ")), advice)
}
