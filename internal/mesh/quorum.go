// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"slices"
	"strings"
)

// LostQuorum says that etcd loses its quorum with the nodes lost, or "" if it does not. More than half
// of its members have to reach each other, of all that there are: those that are down count, too.
func LostQuorum(records []Record, alive map[ID]bool, lost []ID) string {
	var members int
	var left []string
	hit := false
	for _, r := range records {
		switch {
		case r.Etcd == "":
			continue
		case slices.Contains(lost, r.ID()):
			hit = true
		case alive[r.ID()]:
			left = append(left, r.Name)
		}
		members++
	}
	needed := members/2 + 1
	if !hit || len(left) >= needed {
		return ""
	}
	slices.Sort(left)
	names := ""
	if len(left) > 0 {
		names = " (" + strings.Join(left, ", ") + ")"
	}
	return fmt.Sprintf("etcd loses its quorum, and k3s its API: %d of %d servers are left%s, and %d are needed", len(left), members, names, needed)
}
