// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
)

// Set sets a key, such as node.location, as a file would. The entries of a list are separated by commas. The
// error names the key. What follows from other settings, such as cluster.pod-prefix, stays as it was:
// it is worked out when the text of Write is parsed.
func Set(c *Config, path, value string) error {
	k, ok := lookup(path)
	if !ok {
		return &Error{File: "command line", Key: path, Problem: "unknown key", Advice: "see man meshd.yaml, or docs/configuration.md"}
	}
	values := []string{value}
	if k.list {
		k.reset(c)
		values = strings.Split(value, ",")
	}
	for _, v := range values {
		if err := k.set(c, strings.TrimSpace(v)); err != nil {
			return &Error{File: "command line", Key: path, Problem: err.Problem, Advice: err.Advice}
		}
	}
	return nil
}
