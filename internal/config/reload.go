// SPDX-License-Identifier: Apache-2.0

package config

import (
	"reflect"
	"slices"
)

// Changed returns the keys that differ between two configurations: those that a running
// daemon can apply, and those that need a restart. A change of the secrets counts as one of
// secret-file.
func Changed(from, to Config) (live, restart []string) {
	for _, k := range keys {
		switch {
		case reflect.DeepEqual(k.get(&from), k.get(&to)):
		case k.restart:
			restart = append(restart, k.path)
		default:
			live = append(live, k.path)
		}
	}
	const secret = "secret-file"
	if !slices.Equal(from.Secrets, to.Secrets) && !slices.Contains(live, secret) {
		live = append([]string{secret}, live...)
	}
	return live, restart
}
