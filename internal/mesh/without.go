// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math"
	"slices"
)

// Without returns the input as if all nodes had found the node lost to be down. Comparing
// what Derive returns for both shows what the loss of that node changes.
func Without(in Input, lost ID) Input {
	in.Verdicts = slices.DeleteFunc(slices.Clone(in.Verdicts), func(v Verdict) bool { return v.Subject == lost })
	for _, r := range in.Records {
		in.Verdicts = append(in.Verdicts, Verdict{
			Author: r.Identity, Subject: lost, State: HealthDown, Epoch: math.MaxUint64,
		})
	}
	return in
}
